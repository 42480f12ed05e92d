"""What became of the requests of a world, and what no router could have beaten."""

from __future__ import annotations

from math import inf

import msgspec

from loadtest.sim.world import World
from loadtest.traces import BLOCK_TOKENS


class Outcome(msgspec.Struct, kw_only=True):
    """All times in ms; requests of the first tenth are left out."""

    ttft: list[float]
    warm_ttft: list[float]
    bound: list[float]
    tpot: list[float]
    hit: float
    loads: int
    held: int
    retried: int
    accuracy: tuple[float, float, float]
    """Bias, spread and p90 coverage of the first router's predictions, over its models."""
    busy_cv: float


def outcome_of(world: World) -> Outcome:
    counted = world.jobs[len(world.jobs) // 10 :]
    done = [job for job in counted if job.ended_at and job.first_at]
    ttft = [1000.0 * (job.first_at - job.arrived) if job.first_at else inf for job in counted]
    warm = {f"m{n}" for n in range(len(world.scenario.warm))}
    bounds = _bounds(world)
    cached = sum(job.sequence.cached_tokens for job in done)
    accuracy = [a for a in world.routers[0].accuracy().values() if a.observations]
    weight = max(1, sum(a.observations for a in accuracy))
    busy = [sum(e.busy_s for e in node.engines.values()) for node in world.nodes.values()]
    mean = sum(busy) / len(busy)
    return Outcome(
        ttft=ttft,
        warm_ttft=[t for t, job in zip(ttft, counted, strict=True) if job.model in warm],
        bound=bounds[len(world.jobs) // 10 :],
        tpot=[
            1000.0 * (job.ended_at - job.first_at) / max(1, job.sequence.generated - 1)
            if job.ended_at and job.first_at
            else inf
            for job in counted
        ],
        hit=cached / max(1, sum(job.sequence.prompt_tokens for job in done)),
        loads=world.loads,
        held=sum(job.held for job in counted),
        retried=sum(job.retries for job in counted),
        accuracy=(
            sum(a.bias * a.observations for a in accuracy) / weight,
            sum(a.spread * a.observations for a in accuracy) / weight,
            sum(a.p90_coverage * a.observations for a in accuracy) / weight,
        ),
        busy_cv=(sum((b - mean) ** 2 for b in busy) / len(busy)) ** 0.5 / mean if mean else 0.0,
    )


def _bounds(world: World) -> list[float]:
    """Of each request what no router can beat, in ms: its own prefill alone on a node that is not slow, everything
    that any earlier request of the model had in common with it cached, each cold model woken once."""
    s = world.scenario
    profile = next(iter(world.engines.values())).profile
    known: dict[str, set[int]] = {}
    awake_at = {f"m{n}": 0.0 for n in range(len(s.warm))}
    bounds = []
    for job in world.jobs:
        prompt, blocks = job.sequence.prompt_tokens, job.sequence.blocks
        seen = known.setdefault(job.model, set())
        hits = next((n for n, block in enumerate(blocks) if block not in seen), len(blocks))
        seen.update(blocks)
        fresh = max(1, prompt - BLOCK_TOKENS * min(hits, (prompt - 1) // BLOCK_TOKENS))
        ready = awake_at.setdefault(job.model, job.arrived + s.sleeping_s)
        steps = -(-fresh // profile.max_batch_tokens)
        own = profile.prefill_token_ms * fresh + steps * profile.base_step_ms + profile.api_request_ms
        bounds.append(1000.0 * max(0.0, ready - job.arrived) + own)
    return bounds

"""What is simulated: the fleet, the trace and what goes wrong, and the requests that come of it, seeded."""

from __future__ import annotations

import random
from array import array
from functools import lru_cache

import msgspec

from loadtest.sim.node import Job
from loadtest.traces import BLOCK_TOKENS, Arrival, load
from node_agent.engines.simulated.batching import Sequence
from router.core.constants import Constants
from router.core.model import Shape

BYTES_PER_TOKEN = 4
WINDOWS = 5
"""Seeds begin at so many places of the trace, in turn."""
WARM = (6, 4, 3, 3)
"""Nodes that begin with each of the four warm models."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    trace: str = "mooncake-conv"
    speed: float = 1.8
    """Times of the trace are divided by it."""
    requests: int = 2500
    policy: str = "expected_time"
    tuned: dict[str, float] = {}
    """Arguments of the policy, instead of its own constants."""
    seed: int = 1
    nodes: int = 16
    warm: tuple[int, ...] = WARM
    cold: int = 4
    """Models that sleep on two nodes and lie on the disks of the others."""
    slots: int = 2
    slow: dict[int, float] = msgspec.field(default_factory=lambda: {3: 2.0, 11: 2.0})
    degrade: dict[int, float] = msgspec.field(default_factory=lambda: {6: 4.0})
    """Nodes that become slower at half time."""
    sleeping_s: float = 3.0
    on_disk_s: float = 40.0
    routers: int = 1
    sticky: bool = True
    """Requests of a session come to the same router."""
    report_s: float = 1.0
    report_loss: float = 0.0
    crashes: int = 0
    """Engines killed at random moments, back after `on_disk_s`."""
    kv_tokens: int = 299_000
    batch_tokens: int = 2048
    prior_prefill: float = 1.0
    """How wrong the router's first idea of the device is."""
    prior_step: float = 1.0
    constants: Constants = Constants()


def jobs_of(scenario: Scenario) -> list[Job]:
    """A model and a router are drawn for each session."""
    s = scenario
    arrivals = _arrivals(s.trace, s.seed)
    first = (s.seed - 1) % WINDOWS * max(0, len(arrivals) - s.requests) // (WINDOWS - 1)
    arrivals = arrivals[first : first + s.requests]
    rng = random.Random(s.seed)
    count = len(s.warm) + s.cold
    weights = [1.0 / (k + 1) for k in range(count)]
    by_session: dict[int, tuple[int, int]] = {}
    jobs = []
    for number, arrival in enumerate(arrivals):
        session = arrival.blocks[1] if len(arrival.blocks) > 1 else -1 - number
        if session not in by_session:
            by_session[session] = (rng.choices(range(count), weights)[0], rng.randrange(s.routers))
        model, router = by_session[session]
        jobs.append(
            Job(
                number=number,
                model=f"m{model}",
                arrived=(arrival.at_s - arrivals[0].at_s) / s.speed,
                sequence=_sequence(arrival, number),
                router=router if s.sticky else rng.randrange(s.routers),
            )
        )
    return jobs


def shape_of(job: Job) -> Shape:
    s = job.sequence
    return Shape(
        request_id=str(job.number),
        model=job.model,
        prompt=_prompt(s.blocks[: s.prompt_tokens // BLOCK_TOKENS], s.prompt_tokens, job.number),
        max_tokens=0,
    )


@lru_cache(maxsize=4)
def _arrivals(trace: str, seed: int) -> list[Arrival]:
    return load(trace, seed=seed)


def _sequence(arrival: Arrival, number: int) -> Sequence:
    full = arrival.prompt_tokens // BLOCK_TOKENS
    return Sequence(
        id=f"{number}.0",
        prompt_tokens=max(1, arrival.prompt_tokens),
        max_tokens=max(1, arrival.output_tokens),
        blocks=list(arrival.blocks[:full]),
    )


def _prompt(blocks: list[int], tokens: int, number: int) -> bytes:
    """Bytes that are equal exactly as far as the blocks are."""
    words = array("q", [block for block in blocks for _ in range(BLOCK_TOKENS * BYTES_PER_TOKEN // 8)]).tobytes()
    rest = max(0, tokens * BYTES_PER_TOKEN - len(words))
    return words + array("q", [-1 - number]).tobytes() * (rest // 8 + 1)

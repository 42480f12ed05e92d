"""Rules for comparison that no router can have or would want: one that knows everything, one that never loads a copy.

Source: routing.md section 3.3 (b).
"""

from __future__ import annotations

from math import ceil
from typing import Protocol

import numpy as np

from loadtest.sim.node import Engine, Job
from node_agent.engines.simulated.batching import Sequence
from router.core.policies.base import Rng
from router.core.policies.contenders import Contenders
from router.core.policies.expected_time import ExpectedTime
from router.core.score import Array
from wire.records import ModelState

MIN_STEP_TOKENS = 256
WAKE_MS, EVICT_MS, NO_SLOT_MS = 500.0, 3000.0, 60_000.0


class Sees(Protocol):
    now: float
    asking: Job | None

    def replicas(self, model: str) -> list[Engine]: ...


class FullInformation:
    """The default rule's aim over the truth: real queues, speeds, caches and load times, of everybody and at once.

    Greedy, so not the optimum: another rule can be better by luck."""

    name = "full_information"
    loads = True
    uses_prefix = False
    in_ms = True

    def __init__(self, world: Sees) -> None:
        self._world = world

    def score(self, contenders: Contenders, rng: Rng) -> Array:
        job = self._world.asking
        assert job is not None
        times = [true_ms(engine, job.sequence, self._world.now) for engine in self._world.replicas(job.model)]
        return np.where(np.isfinite(contenders.ttft), np.array(times), np.inf)


class ReadyOnly(ExpectedTime):
    """The default rule without the freedom to load another copy while one is ready."""

    name = "ready_only"
    loads = False

    def score(self, contenders: Contenders, rng: Rng) -> Array:
        scores: Array = np.array(super().score(contenders, rng)) + contenders.ready
        return scores


def true_ms(engine: Engine, asked: Sequence, now: float) -> float:
    """Time to the first token there, and what others lose by it."""
    p, batch = engine.profile, engine.batch
    coming = [job.sequence for job in engine.coming.values()]
    ahead = batch.waiting_uncached_tokens() + sum(_fresh(engine, one) for one in coming)
    fresh = _fresh(engine, asked)
    decoding = len(batch.decoding)
    context = sum(one.computed for one in batch.decoding.values())
    step = p.base_step_ms * batch.models_on_gpu + p.sequence_ms * decoding + p.kv_token_us / 1000 * context
    steps = 0.5 + ceil((ahead + fresh) / max(MIN_STEP_TOKENS, p.max_batch_tokens - decoding))
    work = p.prefill_token_ms * (ahead + fresh)
    work += p.attention_token2_ms * fresh * (asked.prompt_tokens - fresh / 2)
    others = decoding + len(batch.waiting) + len(batch.prefilling) + len(coming)
    harm = p.prefill_token_ms * fresh * others
    return load_ms(engine, now) + engine.node.slow(now) * (steps * step + work + harm)


def load_ms(engine: Engine, now: float) -> float:
    match engine.state:
        case ModelState.READY:
            return 0.0
        case ModelState.LOADING:
            return 1000.0 * (engine.ready_at - now)
    node = engine.node
    present = [e for e in node.engines.values() if e.state in (ModelState.READY, ModelState.LOADING)]
    total = 1000.0 * node.load_s[engine.state] + WAKE_MS
    total += sum(1000.0 * (e.ready_at - now) for e in present if e.state is ModelState.LOADING)
    if len(present) >= node.slots:
        total += EVICT_MS if any(not e.jobs and not e.coming for e in present) else NO_SLOT_MS
    return total


def _fresh(engine: Engine, asked: Sequence) -> int:
    block = engine.profile.block_tokens
    return max(1, asked.tokens - block * engine.batch.pool.match(asked.blocks, (asked.tokens - 1) // block))

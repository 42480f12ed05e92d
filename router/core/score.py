"""The rule: expected time to the first token of every replica at once, and the terms it is made of.

Replicas are columns of figures (`state.py` keeps them), so that a thousand cost little more than ten. Formula and
names: routing.md section 2.2. Decides nothing; `pick.py` chooses.

    u     = max(1, P - matched x hit)                      tokens to prefill here
    W     = Q + u                                          with those ahead of us
    E     = (1/2 + ceil(W / room)) step + b1 W + b2 u (P - u/2) + other models' prefill on the same GPU
    TTFT  = rtt + load + slowness ramp E + kv barrier + health
    TPOT  = slowness decode (step + a1 + a2 (P + out/2)) + share of the prefills that run between our tokens
    score = TTFT + 1/4 out (TPOT - best TPOT)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from router.core.constants import Constants

Array = NDArray[np.float64]

(
    FIXED,  # network + load + health, infinite for a replica that cannot serve
    NETWORK,
    LOAD,
    HEALTH,
    SPEED,  # slowness x ramp
    RAMP,
    QUEUE,  # uncached tokens ahead of us
    AHEAD,  # ms of prefill of other models on the same GPU
    STEP,
    ROOM,  # 1 / prompt tokens that a step takes
    PREFILL,
    ATTENTION,
    KV_USED,
    KV_TOKEN,  # share of the KV memory that one token takes
    TOKEN,  # ms between tokens without our own context
    CONTEXT,
    HIT,
    UNCERTAINTY,
    READY,  # 1 when it can be sent to now
    IN_FLIGHT,
    WAITING,
    RUNNING,
    KV_SHARE,
    LATENCY,  # peak EWMA of ms to the first token, for the baselines
) = range(24)
FIGURES = 24


class Ask:
    """What the formula needs to know of a request."""

    __slots__ = ("limit_ms", "output_tokens", "per_byte", "prompt_tokens")

    def __init__(self, *, prompt_tokens: float, output_tokens: float, per_byte: float, limit_ms: float = 0.0) -> None:
        self.prompt_tokens, self.output_tokens, self.per_byte = prompt_tokens, output_tokens, per_byte
        self.limit_ms = limit_ms
        """First token wanted within; 0 when nobody said."""


def uncached(figures: Sequence[Array], ask: Ask, matched_bytes: Array | None) -> Array | float:
    """Tokens that each replica must prefill; one number when none has any of the prompt."""
    if matched_bytes is None:
        return max(1.0, ask.prompt_tokens)
    left: Array = matched_bytes * figures[HIT]
    left *= -ask.per_byte
    left += ask.prompt_tokens
    np.maximum(left, 1.0, out=left)
    return left


def ttft_ms(figures: Sequence[Array], ask: Ask, fresh: Array | float, constants: Constants) -> Array:
    """Expected milliseconds to the first token; infinite where the request cannot be served."""
    work = figures[QUEUE] + fresh
    time: Array = work * figures[ROOM]
    np.ceil(time, out=time)
    time += 0.5
    time *= figures[STEP]
    work *= figures[PREFILL]
    time += work
    time += figures[ATTENTION] * _pairs(ask, fresh)
    time += figures[AHEAD]
    time *= figures[SPEED]
    time += figures[FIXED]
    time += kv_barrier_ms(figures, ask, constants)
    return time


def kv_barrier_ms(figures: Sequence[Array], ask: Ask, constants: Constants) -> Array:
    """Grows without bound as the KV memory fills: an engine out of it preempts, and everything there waits."""
    use: Array = figures[KV_TOKEN] * ask.prompt_tokens
    use += figures[KV_USED]
    np.minimum(use, constants.kv_full, out=use)
    np.subtract(1.0, use, out=use)
    np.divide(constants.kv_barrier_ms, use, out=use)
    use -= constants.kv_barrier_ms
    return use


def excess_ms(figures: Sequence[Array], ask: Ask, constants: Constants) -> Array | float:
    """What a slower decode than the best costs over the expected answer. At least one replica must be able to serve."""
    if ask.output_tokens <= 0.0:
        return 0.0
    pace: Array = figures[CONTEXT] * (ask.prompt_tokens + ask.output_tokens / 2.0)
    pace += figures[TOKEN]
    pace -= pace.min()
    pace *= constants.excess_tpot_weight * ask.output_tokens
    return pace


def engine_parts_ms(figures: Sequence[Array], place: int, ask: Ask, fresh: float) -> tuple[float, float]:
    """Steps and prefill of one replica for slowness 1: what the learners compare an observation with."""
    work = float(figures[QUEUE][place]) + fresh
    steps = (0.5 + ceil(work * float(figures[ROOM][place]))) * float(figures[STEP][place])
    attention = fresh * (ask.prompt_tokens - 0.5 * fresh) * float(figures[ATTENTION][place])
    return steps, work * float(figures[PREFILL][place]) + attention + float(figures[AHEAD][place])


def terms(figures: Sequence[Array], ask: Ask, matched_bytes: Array | None, constants: Constants) -> dict[str, Array]:
    """The score taken apart; the terms of a replica add up to its score."""
    fresh = uncached(figures, ask, matched_bytes) + np.zeros_like(figures[QUEUE])
    alone_steps = np.ceil(fresh * figures[ROOM])
    steps = np.ceil((figures[QUEUE] + fresh) * figures[ROOM])
    slow = figures[SPEED] / figures[RAMP]
    queue = slow * (figures[QUEUE] * figures[PREFILL] + (steps - alone_steps) * figures[STEP] + figures[AHEAD])
    prefill = slow * (fresh * figures[PREFILL] + figures[ATTENTION] * _pairs(ask, fresh))
    step = slow * (0.5 + alone_steps) * figures[STEP]
    return {
        "network": figures[NETWORK],
        "load": figures[LOAD],
        "queue": queue,
        "step": step,
        "prefill": prefill,
        "slow_start": (figures[RAMP] - 1.0) * (queue + prefill + step),
        "kv": kv_barrier_ms(figures, ask, constants),
        "health": figures[HEALTH],
        "slower_decode": excess_ms(figures, ask, constants) + np.zeros_like(slow),
    }


def _pairs(ask: Ask, fresh: Array | float) -> Array | float:
    """Pairs of prompt and context tokens that attention reads."""
    return fresh * (ask.prompt_tokens - 0.5 * fresh)

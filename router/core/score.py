"""The rule: expected time to the first token of every replica at once, and the terms it is made of.

Over columns of figures (`group.py` keeps them) for many replicas, so that a thousand cost little more than ten, and
`scan` for a few, where numpy's calls would cost more than the numbers. Both are the same formula and tested to agree.
Names: routing.md section 2.2. Decides nothing; `pick.py` chooses.

    u     = max(1, P - matched x hit)                      tokens to prefill here
    W     = Q + u                                          with those ahead of us
    E     = (1/2 + ceil(W / room)) step + b1 W + b2 u (P - u/2) + other models' prefill on the same GPU
    TTFT  = rtt + load + slowness ramp E + kv barrier + health
    TPOT  = slowness decode (step + a1 + a2 (P + out/2)) + share of the prefills that run between our tokens
    score = TTFT + 1/20 out (TPOT - best TPOT) + harm      harm = n slowness b1 u: what others wait for our prefill
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.core.ask import Ask
from router.core.constants import Constants

Array = NDArray[np.float64]
Column = tuple[float, ...]
"""The figures of one replica; never changed, a new one takes its place."""

BASE: Final = 0  # all that the request itself does not change; infinite for a replica that cannot serve
SLOW_STEP: Final = 1  # slowness x ramp x one step
SLOW_PREFILL: Final = 2  # the same x b1
SLOW_ATTENTION: Final = 3  # the same x b2
ROOM: Final = 4  # 1 / prompt tokens that a step takes
STEPS_AHEAD: Final = 5  # steps that the queue takes
KV_USED: Final = 6
KV_TOKEN: Final = 7  # share of the KV memory that one token takes
KV_SLOPE: Final = 8  # how fast the barrier grows with a token at the present use
TOKEN: Final = 9  # ms between tokens without our own context
CONTEXT: Final = 10
HIT: Final = 11
HARM: Final = 12  # ms that the answers in flight there lose, in sum and weighed, by each prompt token between them
READY: Final = 13  # 1 when it can be sent to now
UNCERTAINTY: Final = 14
NETWORK: Final = 15
LOAD: Final = 16
HEALTH: Final = 17
SPEED: Final = 18  # slowness x ramp
RAMP: Final = 19
QUEUE: Final = 20  # uncached tokens ahead of us
AHEAD: Final = 21  # ms of prefill of other models on the same GPU
IN_FLIGHT: Final = 22
WAITING: Final = 23
RUNNING: Final = 24
KV_SHARE: Final = 25
LATENCY: Final = 26  # peak EWMA of ms to the first token, for the baselines
FIGURES: Final = 27

SMALL_KV: Final = 0.05
"""Up to this share of the KV memory a prompt's effect on the barrier is taken as linear: half the work of the exact
form, which is used for any longer prompt."""


def uncached(figures: Sequence[Array], ask: Ask, matched_bytes: Array | None) -> Array | float:
    """Tokens that each replica must prefill; one number when none has any of the prompt."""
    if matched_bytes is None:
        return max(1.0, ask.prompt_tokens)
    left: Array = matched_bytes * figures[HIT]
    left *= -ask.per_byte
    left += ask.prompt_tokens
    np.maximum(left, 1.0, out=left)
    return left


def uncached_at(column: Column, ask: Ask, matched_bytes: float) -> float:
    left = ask.prompt_tokens - matched_bytes * column[HIT] * ask.per_byte
    if left < 1.0:
        return 1.0
    return left


def scan(
    columns: Sequence[Column], ask: Ask, matched_bytes: Sequence[float] | None, constants: Constants
) -> list[float]:
    """Score of each of a few replicas, in ms; infinite where it cannot serve."""
    prompt, output, per_byte, small = ask.prompt_tokens, ask.output_tokens, ask.per_byte, ask.small
    context, weight = prompt + output / 2.0, constants.excess_tpot_weight * output
    fresh, best = max(1.0, prompt), inf
    scores = []
    for place, column in enumerate(columns):
        if matched_bytes is not None:
            fresh = prompt - matched_bytes[place] * column[HIT] * per_byte
            if fresh < 1.0:
                fresh = 1.0
        pace = column[TOKEN] + column[CONTEXT] * context
        if pace < best:
            best = pace
        growth = column[KV_SLOPE] * prompt if small else kv_growth_at(column, prompt, constants)
        scores.append(
            column[BASE]
            + ceil(column[STEPS_AHEAD] + fresh * column[ROOM]) * column[SLOW_STEP]
            + fresh * (column[SLOW_PREFILL] + column[HARM] + column[SLOW_ATTENTION] * (prompt - 0.5 * fresh))
            + growth
            + weight * pace
        )
    if not weight or best == inf:  # no pace counts; 0 x inf is no number, and less than none
        return [min(inf, score) for score in scores]
    least = weight * best
    return [score - least for score in scores]


def ttft_at(column: Column, ask: Ask, matched_bytes: float, constants: Constants) -> float:
    """Expected milliseconds to the first token of one replica; infinite where it cannot serve."""
    fresh, prompt = uncached_at(column, ask, matched_bytes), ask.prompt_tokens
    time = column[BASE] + ceil(column[STEPS_AHEAD] + fresh * column[ROOM]) * column[SLOW_STEP]
    time += fresh * (column[SLOW_PREFILL] + column[SLOW_ATTENTION] * (prompt - 0.5 * fresh))
    return time + (column[KV_SLOPE] * prompt if ask.small else kv_growth_at(column, prompt, constants))


def ttft_ms(figures: Sequence[Array], ask: Ask, fresh: Array | float, constants: Constants) -> Array:
    """Expected milliseconds to the first token; infinite where the request cannot be served."""
    time: Array = figures[ROOM] * fresh
    time += figures[STEPS_AHEAD]
    np.ceil(time, out=time)
    time *= figures[SLOW_STEP]
    time += figures[BASE]
    work: Array | float = fresh * -0.5
    work += ask.prompt_tokens
    per_token: Array = figures[SLOW_ATTENTION] * work
    per_token += figures[SLOW_PREFILL]
    per_token *= fresh
    time += per_token
    time += kv_growth_ms(figures, ask, constants)
    return time


def kv_barrier_ms(use: float, constants: Constants) -> float:
    """Grows without bound as the KV memory fills: an engine out of it preempts, and everything there waits. The part
    for the present use is in BASE."""
    if use > constants.kv_full:
        use = constants.kv_full
    return constants.kv_barrier_ms * use / (1.0 - use)


def kv_price_ms(use: float, per_token: float, constants: Constants) -> tuple[float, float]:
    """The barrier, and how fast it grows with a token of a small prompt, which never takes it beyond that of a full
    memory: else a nearly full replica would look worse than a full one."""
    weight, full = constants.kv_barrier_ms, constants.kv_full
    most = weight * full / (1.0 - full)
    if use >= full:
        return most, 0.0
    left = 1.0 - use
    barrier, slope = weight * use / left, weight / (left * left)
    chord = (most - barrier) / SMALL_KV
    return barrier, per_token * min(chord, slope)


def kv_growth_at(column: Column, prompt_tokens: float, constants: Constants) -> float:
    used = column[KV_USED]
    more = used + column[KV_TOKEN] * prompt_tokens
    return kv_barrier_ms(more, constants) - kv_barrier_ms(used, constants)


def kv_growth_ms(figures: Sequence[Array], ask: Ask, constants: Constants) -> Array:
    """What our own prompt adds to the barrier."""
    if ask.small:
        growth: Array = figures[KV_SLOPE] * ask.prompt_tokens
        return growth
    full = constants.kv_full
    before = np.minimum(figures[KV_USED], full)
    after = np.minimum(figures[KV_USED] + figures[KV_TOKEN] * ask.prompt_tokens, full)
    exact: Array = constants.kv_barrier_ms * (after / (1.0 - after) - before / (1.0 - before))
    return exact


def excess_ms(figures: Sequence[Array], ask: Ask, constants: Constants) -> Array | float:
    """What a slower decode than the best costs over the expected answer."""
    if ask.output_tokens <= 0.0:
        return 0.0
    pace: Array = figures[CONTEXT] * (ask.prompt_tokens + ask.output_tokens / 2.0)
    pace += figures[TOKEN]
    best = pace[pace.argmin()]  # half the time of min(); all infinite when nobody can serve
    if best < np.inf:
        pace -= best
    pace *= constants.excess_tpot_weight * ask.output_tokens
    return pace


def harm_ms(figures: Sequence[Array], fresh: Array | float) -> Array:
    """What our prefill costs the others on each replica: steps with prompt tokens in them are longer, and every answer
    that decodes then waits for them. Those that still wait ahead of us will decode when our turn comes."""
    harm: Array = figures[HARM] * fresh
    return harm


def engine_parts_ms(column: Column, ask: Ask, fresh: float) -> tuple[float, float]:
    """Steps and prefill of one replica for slowness 1: what the learners compare an observation with."""
    speed = column[SPEED]
    steps = 0.5 + ceil(column[STEPS_AHEAD] + fresh * column[ROOM])
    attention = fresh * (ask.prompt_tokens - 0.5 * fresh) * column[SLOW_ATTENTION]
    prefill = (column[QUEUE] + fresh) * column[SLOW_PREFILL] + attention
    return steps * column[SLOW_STEP] / speed, prefill / speed + column[AHEAD]


def terms(figures: Sequence[Array], ask: Ask, matched_bytes: Array | None, constants: Constants) -> dict[str, Array]:
    """The score taken apart; the terms of a replica that can serve add up to its score."""
    fresh = uncached(figures, ask, matched_bytes) + np.zeros_like(figures[QUEUE])
    ramp = figures[RAMP]
    alone = np.ceil(fresh * figures[ROOM])
    more = np.ceil(figures[STEPS_AHEAD] + fresh * figures[ROOM]) - alone
    queue = figures[QUEUE] * figures[SLOW_PREFILL] + more * figures[SLOW_STEP] + figures[AHEAD] * figures[SPEED]
    prefill = fresh * (figures[SLOW_PREFILL] + figures[SLOW_ATTENTION] * (ask.prompt_tokens - 0.5 * fresh))
    step = (0.5 + alone) * figures[SLOW_STEP]
    used = np.minimum(figures[KV_USED], constants.kv_full)
    return {
        "network": figures[NETWORK],
        "load": figures[LOAD],
        "queue": queue / ramp,
        "step": step / ramp,
        "prefill": prefill / ramp,
        "slow_start": (1.0 - 1.0 / ramp) * (queue + prefill + step),
        "kv": constants.kv_barrier_ms * used / (1.0 - used) + kv_growth_ms(figures, ask, constants),
        "health": figures[HEALTH],
        "slower_decode": excess_ms(figures, ask, constants) + np.zeros_like(ramp),
        "others": harm_ms(figures, fresh),
    }

"""When a second replica is asked for a first token that is late, and how often that may happen.

Only before the first token, and only where the other is expected to be far sooner: a hedge is a second prefill, so it
must be rare, small, and never add to a fleet that is late because it is full. Who wins is the shell's business
(router/race.py). Source: routing.md section 2.7; Dean and Barroso, The Tail at Scale.
"""

from __future__ import annotations

from collections.abc import Iterable

from router.core.model import Decision, Verdict
from router.core.stall import REPORT_LIMIT_S, Heard

LATE_P90 = 1.3
LATE_MS = 300.0
WORTH = 0.5
"""The other's expected time, of what is left for the first."""
REMAINING = 0.3
"""Of a late first token at least this share of its age is still to come."""
UNCACHED_LIMIT_TOKENS = 4096
WHOLE_DECODES = 3.0
"""Lengths vary far more than times to a first token: a whole answer is late only when one of thrice the length were."""
PREFILL_LOAD_LIMIT = 0.7
AGAIN = 1.3
"""A look that found no better replica is taken again when the request is this much older."""


def late_ms(expected_p90_ms: float, *, decode_ms: float = 0.0) -> float:
    """Age at which a first token is late; `decode_ms` of an answer that comes whole: nothing is seen of its first."""
    return max(LATE_P90 * expected_p90_ms, LATE_MS) + WHOLE_DECODES * decode_ms


def remaining_ms(expected_ms: float, age_ms: float) -> float:
    """Of the time to something that has not come yet."""
    return max(expected_ms - age_ms, REMAINING * age_ms)


def worth(
    first: Decision, other: Decision, *, age_ms: float, prefill_load: float, decode_ms: tuple[float, float] = (0.0, 0.0)
) -> bool:
    """Whether to ask `other`, decided for this moment, too. `decode_ms` of the first and the other, where the answer
    comes whole."""
    left_ms = remaining_ms(first.expected_ttft_ms + decode_ms[0], age_ms)
    return (
        other.verdict is Verdict.SEND
        and age_ms > late_ms(first.expected_p90_ms, decode_ms=decode_ms[0])
        and other.expected_ttft_ms + decode_ms[1] < WORTH * left_ms
        and other.uncached_tokens <= UNCACHED_LIMIT_TOKENS
        and prefill_load < PREFILL_LOAD_LIMIT
    )


def prefill_load(heard: Iterable[Heard | None]) -> float:
    """Share of a model's replicas that have prompts to work on, among those heard of lately; 0 where none is."""
    known = [said for said in heard if said is not None and said.age_s <= REPORT_LIMIT_S]
    return sum(said.waiting > 0 or said.prefill_s > 0.0 for said in known) / len(known) if known else 0.0


class HedgeBudget:
    """Each request that could be hedged deposits `ratio` of a hedge, a hedge takes one; the rest is kept up to
    `ceiling`, so that a quiet hour does not pay for a storm."""

    def __init__(self, *, ratio: float = 0.02, ceiling: float = 10.0) -> None:
        self._ratio = ratio
        self._ceiling = ceiling
        self.balance = min(1.0, ceiling)

    def deposit(self) -> None:
        self.balance = min(self._ceiling, self.balance + self._ratio)

    def withdraw(self) -> bool:
        """Take one hedge if there is one."""
        if self.balance < 1.0:
            return False
        self.balance -= 1.0
        return True

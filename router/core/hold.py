"""Wait, wake, spill to another region or fall back to another model: one comparison of expected times.

The best replica of this region may be ready (send), loading (hold) or asleep (wake): its expected time contains the
load already, with hysteresis and the price of what it would evict (figures.py). Other regions and the substitute model
have to beat it with a margin. Source: routing.md section 1.3 and the last part of 2.6.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from router.core.constants import Constants
from router.core.model import Verdict
from router.core.replica import ReplicaState
from wire.records import ModelState


class Way(NamedTuple):
    verdict: Verdict
    expected_ms: float
    where: str = ""
    """Region or model, when it is another."""


def here(replica: ReplicaState, expected_ms: float, now: float) -> Way:
    if replica.current is ModelState.READY:
        return Way(Verdict.SEND, expected_ms)
    if replica.current is ModelState.LOADING or replica.waking(now):
        return Way(Verdict.HOLD, expected_ms)
    return Way(Verdict.WAKE, expected_ms)


def least(own: Way | None, *, spill: Way | None, fallback: Way | None, constants: Constants) -> Way | None:
    """The way with the least expected time; our own region and model unless another is clearly better."""
    best, time = own, own.expected_ms if own else inf
    if spill is not None:
        margin = max(constants.spill_ms, constants.spill_fraction * spill.expected_ms)
        if spill.expected_ms + margin < time:
            best, time = spill, spill.expected_ms + margin
    if fallback is not None and fallback.expected_ms + constants.fallback_ms < time:
        best = fallback
    return best

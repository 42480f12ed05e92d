"""The default: the least expected time to the first token, with what a slower decode adds, over every model state.

With a deadline, those that probably meet it come first. Source: routing.md section 2.2.
"""

from __future__ import annotations

from math import inf

from router.core.policies.base import Rng
from router.core.policies.contenders import Contenders
from router.core.score import UNCERTAINTY, Array


class ExpectedTime:
    name = "expected_time"
    loads = True
    uses_prefix = True
    in_ms = True

    def score(self, contenders: Contenders, rng: Rng) -> Array | list[float]:
        scores = contenders.scan()
        return _in_time(scores, contenders) if contenders.ask.limit_ms else scores


def _in_time(scores: list[float], contenders: Contenders) -> list[float]:
    """Of those that probably meet the deadline their scores, or every one's time when none does."""
    limit, columns = contenders.ask.limit_ms, contenders.columns
    times = [inf if score == inf else contenders.ttft_at(place) for place, score in enumerate(scores)]
    in_time = [time * (1.0 + columns[place][UNCERTAINTY]) <= limit for place, time in enumerate(times)]
    if not any(in_time):
        return times
    return [score if soon else inf for score, soon in zip(scores, in_time, strict=True)]

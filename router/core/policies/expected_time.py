"""The default: the least expected time to the first token, with what a slower decode adds, over every model state.

With a deadline, those that probably meet it come first. Source: routing.md section 2.2.
"""

from __future__ import annotations

import numpy as np

from router.core.policies.base import Contenders, Rng
from router.core.score import UNCERTAINTY, Array


class ExpectedTime:
    name = "expected_time"
    loads = True
    uses_prefix = True
    in_ms = True

    def score(self, contenders: Contenders, rng: Rng) -> Array:
        limit = contenders.ask.limit_ms
        if not limit:
            return contenders.whole
        in_time = contenders.ttft * (1.0 + contenders.figures[UNCERTAINTY]) <= limit
        if not in_time.any():
            return contenders.ttft
        return np.where(in_time, contenders.whole, np.inf)

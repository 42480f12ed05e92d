"""How long until an engine can serve: learned from how long it took before, per model and way of starting.

An exponential average with weight 0.3 for the newest; before the first, a prior that the engine kind names. When a
start takes longer than expected, a tenth of what it has taken is promised again and again: never zero, never certain.
"""

from __future__ import annotations

from collections.abc import Mapping

NEWEST = 0.3


class Estimate:
    def __init__(self, learned: Mapping[str, float]) -> None:
        self.learned = dict(learned)

    def observe(self, key: str, seconds: float) -> None:
        known = self.learned.get(key)
        self.learned[key] = seconds if known is None else known + NEWEST * (seconds - known)

    def remaining_s(self, key: str, *, prior_s: float, elapsed_s: float = 0.0) -> float:
        return max(self.learned.get(key, prior_s) - elapsed_s, 0.1 * elapsed_s)

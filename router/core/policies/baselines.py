"""General load balancing: random, round robin, least in flight, two choices, Peak-EWMA.

For comparison, and for who wants them. Source: routing.md section 1.1 (Envoy, Finagle, linkerd).
"""

from __future__ import annotations

import numpy as np

from router.core.policies.base import Rng
from router.core.policies.contenders import Contenders
from router.core.score import IN_FLIGHT, LATENCY, Array


class Random:
    name = "random"
    loads = False
    uses_prefix = False
    in_ms = False

    def score(self, contenders: Contenders, rng: Rng) -> Array:
        return _only(contenders.ready, _draw(contenders.ready, 1, rng))


class RoundRobin:
    name = "round_robin"
    loads = False
    uses_prefix = False
    in_ms = False

    def __init__(self) -> None:
        self._next = 0

    def score(self, contenders: Contenders, rng: Rng) -> Array:
        size = len(contenders.ready)
        turns: Array = (np.arange(size) - self._next) % size + contenders.ready
        best = int(turns.argmin())
        if np.isfinite(turns[best]):
            self._next = best + 1
        return turns


class LeastInFlight:
    name = "least_in_flight"
    loads = False
    uses_prefix = False
    in_ms = False

    def score(self, contenders: Contenders, rng: Rng) -> Array:
        return contenders.figures[IN_FLIGHT] + contenders.ready


class PowerOfTwo:
    name = "p2c"
    loads = False
    uses_prefix = False
    in_ms = False

    def __init__(self, *, choices: int = 2) -> None:
        self.choices = choices

    def score(self, contenders: Contenders, rng: Rng) -> Array:
        return _only(contenders.figures[IN_FLIGHT] + contenders.ready, _draw(contenders.ready, self.choices, rng))


class PeakEwma:
    """Two choices on peak EWMA of the time to the first token, times what is in flight and one more."""

    name = "peak_ewma_p2c"
    loads = False
    uses_prefix = False
    in_ms = False

    def __init__(self, *, choices: int = 2) -> None:
        self.choices = choices

    def score(self, contenders: Contenders, rng: Rng) -> Array:
        cost = contenders.figures[LATENCY] * (contenders.figures[IN_FLIGHT] + 1.0) + contenders.ready
        return _only(cost, _draw(contenders.ready, self.choices, rng))


def _draw(ready: Array, count: int, rng: Rng) -> list[int]:
    """`count` different places that are ready, fewer when there are not so many."""
    places = np.flatnonzero(np.isfinite(ready)).tolist()
    return [places.pop(int(rng.random() * len(places))) for _ in range(min(count, len(places)))]


def _only(cost: Array, places: list[int]) -> Array:
    only = np.full_like(cost, np.inf)
    only[places] = cost[places]
    return only

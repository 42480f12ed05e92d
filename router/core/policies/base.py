"""What a policy is given and what it gives back: a number per contender, least wins, infinite is out.

Eligibility, ties, exploration and what follows from a winner that must be loaded first are the same for all policies
and not their business. Policies may throw dice (`rng`) and keep counters of their own, one instance per model.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Protocol

import numpy as np

from router.core.constants import Constants
from router.core.score import READY, Array, Ask, Column, Hot, scan, ttft_ms, uncached


class Rng(Protocol):
    def random(self) -> float:
        """Uniform in [0, 1)."""
        ...


class Contenders:
    """The replicas that a decision is made between, as figures, with what each has of the prompt."""

    __slots__ = (
        "_figures",
        "_fresh",
        "_times",
        "_ttft",
        "ask",
        "columns",
        "constants",
        "extra_ms",
        "hots",
        "matched_bytes",
        "out",
        "rows",
    )

    def __init__(
        self,
        columns: Sequence[Column],
        ask: Ask,
        *,
        hots: Sequence[Hot],
        rows: Sequence[int] | None,
        matched_bytes: Sequence[float] | None,
        extra_ms: Sequence[float] | None,
        out: Sequence[int],
        constants: Constants,
    ) -> None:
        self.columns = columns
        """The figures of each."""
        self.ask = ask
        self.hots = hots
        """Those that make the rule's score."""
        self.rows = rows
        """Of each place, its row in the group; None when they are the same."""
        self.matched_bytes = matched_bytes
        self.extra_ms = extra_ms
        self.out = out
        """Places that may not be chosen: tried already, or barred for their health."""
        self.constants = constants
        self._times: list[float] | None = None
        self._figures: list[Array] | None = None
        self._fresh: Array | float | None = None
        self._ttft: Array | None = None

    def row(self, place: int) -> int:
        return place if self.rows is None else self.rows[place]

    def matched_at(self, place: int) -> float:
        return 0.0 if self.matched_bytes is None else self.matched_bytes[place]

    def ttft_at(self, place: int) -> float:
        return float(self.ttft[place]) if self._times is None else self._times[place]

    def scan(self) -> tuple[list[float], list[float]]:
        """The rule's score and the expected time to the first token of each, in ms."""
        scores, times = scan(self.hots, self.ask, self.matched_bytes, self.constants)
        if self.extra_ms is not None:
            scores = [score + extra for score, extra in zip(scores, self.extra_ms, strict=True)]
            times = [time + extra for time, extra in zip(times, self.extra_ms, strict=True)]
        for place in self.out:
            scores[place] = times[place] = inf
        self._times = times
        return scores, times

    @property
    def figures(self) -> list[Array]:
        """For policies that like numpy: one array per figure."""
        if self._figures is None:
            self._figures = list(np.array(self.columns).T)
        return self._figures

    @property
    def fresh(self) -> Array | float:
        if self._fresh is None:
            matched = None if self.matched_bytes is None else np.array(self.matched_bytes)
            self._fresh = uncached(self.figures, self.ask, matched)
        return self._fresh

    @property
    def ttft(self) -> Array:
        if self._ttft is None:
            self._ttft = ttft_ms(self.figures, self.ask, self.fresh, self.constants)
            if self.extra_ms is not None:
                self._ttft += self.extra_ms
            for place in self.out:
                self._ttft[place] = np.inf
        return self._ttft

    @property
    def ready(self) -> Array:
        """0 where a request can be sent to now, infinite elsewhere: baselines know no other state."""
        return np.where((self.figures[READY] > 0.0) & np.isfinite(self.ttft), 0.0, np.inf)

    @property
    def matched_tokens(self) -> Array:
        if self.matched_bytes is None:
            return np.zeros_like(self.figures[READY])
        return np.minimum(np.array(self.matched_bytes) * self.ask.per_byte, self.ask.prompt_tokens)


class Policy(Protocol):
    name: str
    loads: bool
    """Whether replicas that must be loaded first compete; else they are used only when none is ready."""
    uses_prefix: bool
    in_ms: bool
    """Whether the numbers are milliseconds, so that near ones are ties and the second best may be explored."""

    def score(self, contenders: Contenders, rng: Rng) -> Array | list[float]:
        """May be changed by who asked."""
        ...

"""What a policy chooses between."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import msgspec
import numpy as np

from router.core.ask import Ask
from router.core.constants import Constants
from router.core.score import READY, Array, Column, scan, ttft_at, ttft_ms, uncached


class Contenders(msgspec.Struct, kw_only=True, eq=False):
    """The replicas that a decision is made between, as figures, with what each has of the prompt."""

    columns: Sequence[Column]
    """The figures of each."""
    ask: Ask
    rows: Sequence[int] | None
    """Of each place, its row in the group; None when they are the same."""
    matched_bytes: Sequence[float] | None
    extra_ms: Sequence[float] | None
    out: Sequence[int]
    """Places that may not be chosen: tried already, or barred for their health."""
    constants: Constants
    _figures: list[Array] | None = None
    _fresh: Array | float | None = None
    _ttft: Array | None = None

    def row(self, place: int) -> int:
        return place if self.rows is None else self.rows[place]

    def matched_at(self, place: int) -> float:
        return 0.0 if self.matched_bytes is None else self.matched_bytes[place]

    def ttft_at(self, place: int) -> float:
        """Of one that may be chosen."""
        time = ttft_at(self.columns[place], self.ask, self.matched_at(place), self.constants)
        return time if self.extra_ms is None else time + self.extra_ms[place]

    def scan(self) -> list[float]:
        """The rule's score of each, in ms."""
        scores = scan(self.columns, self.ask, self.matched_bytes, self.constants)
        if self.extra_ms is not None:
            scores = [score + extra for score, extra in zip(scores, self.extra_ms, strict=True)]
        for place in self.out:
            scores[place] = inf
        return scores

    def drop_arrays(self) -> None:
        """Once the policy has spoken: the decision's record keeps the rest."""
        self._figures = self._fresh = self._ttft = None

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

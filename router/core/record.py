"""What is kept of a decision, and how it is told."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from router.core.model import Candidate, Decision, Ending, Verdict
from router.core.policies.contenders import Contenders


class Event(msgspec.Struct, eq=False, gc=False):
    """Of an attempt: its first token, or how it ended."""

    at: float
    replica: str
    ending: Ending | None = None
    took_ms: float = 0.0

    @property
    def words(self) -> str:
        if self.ending is None:
            return f"first token from {self.replica} after {self.took_ms:.0f} ms"
        return f"{self.ending} on {self.replica}"


class Record(msgspec.Struct, kw_only=True, eq=False, weakref=True):
    """One decision: who was looked at, with what figures, and what happened to it since."""

    at: float
    model: str
    decision: Decision
    field: Contenders
    excluded: dict[str, str]
    """Why replicas were left out, by name."""
    names_by_row: Sequence[str]
    happened: tuple[Event, ...] = ()
    notes: Sequence[tuple[float, str]] = ()
    """(when, what): why it was not sent."""
    times: int = 1
    """How often the same answer was given in a row, while the request was held."""
    before: Record | None = None
    """The decision before it about the same request."""

    @property
    def names(self) -> Sequence[str]:
        rows = self.field.rows
        return self.names_by_row if rows is None else [self.names_by_row[row] for row in rows]

    @property
    def events(self) -> list[tuple[float, str]]:
        """(when, what): first token, ending."""
        return [(event.at, event.words) for event in self.happened]


class Told(msgspec.Struct, kw_only=True):
    """A record in words and numbers, for people and for the admin endpoint."""

    at_s: float
    """Seconds after the request's first decision."""
    verdict: Verdict
    replica: str
    policy: str
    reason: str
    expected_ttft_ms: float
    expected_p90_ms: float
    prompt_tokens: int
    uncached_tokens: int
    candidates: list[Candidate]
    times: int
    events: list[tuple[float, str]]
    explored: bool = False

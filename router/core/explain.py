"""Why a request went where it did: a bounded ring of decisions with the figures they were made from.

A record keeps columns of figures, not sentences; terms and words are made when somebody asks. The same figures replay
a decision under another policy or other constants (whatif.py). Decides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import NamedTuple

import numpy as np

from router.core.constants import Constants
from router.core.model import Candidate, Decision, Verdict
from router.core.record import Record, Told
from router.core.score import terms

REPEATED = (Verdict.HOLD, Verdict.NONE)


class Records:
    """The last decisions by request; the oldest request is forgotten first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._last: dict[str, Record] = {}
        """Of each request, with those before it."""
        self._requests: deque[str] = deque()
        """Oldest first."""

    def __len__(self) -> int:
        return self._count

    def add(self, request_id: str, record: Record) -> None:
        before = self._last.get(request_id)
        self._last[request_id] = record
        if before is None:
            self._requests.append(request_id)
        elif _same(before.decision, record.decision):
            record.times, record.at, record.before = before.times + 1, before.at, before.before
            return
        else:
            record.before = before
        self.make_room()
        self._count += 1

    def make_room(self) -> None:
        """For one more. Done when a request was sent, so that the next need not wait for it: what is freed was last
        touched long ago, and is in no cache."""
        if self._count == self._limit:
            self._forget()
            self._count -= 1

    def last(self, request_id: str) -> Record | None:
        return self._last.get(request_id)

    def of(self, request_id: str) -> list[Record]:
        found = []
        record = self._last.get(request_id)
        while record is not None:
            found.append(record)
            record = record.before
        return found[::-1]

    def everything(self) -> Iterable[tuple[str, Record]]:
        """With the ids of their requests."""
        for request_id in self._requests:
            for record in self.of(request_id):
                yield request_id, record

    def _forget(self) -> None:
        """The oldest decision about the oldest request."""
        record = self._last[self._requests[0]]
        if record.before is None:
            del self._last[self._requests.popleft()]
            return
        while record.before.before is not None:
            record = record.before
        record.before = None


def tell(records: Sequence[Record], constants: Constants) -> list[Told]:
    """A request's decisions in order, each with its candidates, best first."""
    first = records[0].at if records else 0.0
    return [
        Told(
            at_s=record.at - first,
            verdict=record.decision.verdict,
            replica=record.decision.replica,
            policy=record.decision.policy,
            reason=record.decision.reason,
            expected_ttft_ms=record.decision.expected_ttft_ms,
            expected_p90_ms=record.decision.expected_p90_ms,
            prompt_tokens=record.decision.prompt_tokens,
            uncached_tokens=record.decision.uncached_tokens,
            candidates=_foremost(record, constants),
            times=record.times,
            events=[(at - first, what) for at, what in record.events],
            explored=record.decision.explored,
        )
        for record in records
    ]


def _foremost(record: Record, constants: Constants) -> list[Candidate]:
    """The best, and the one that was chosen where many were equal."""
    every = candidates(record, constants)
    best = every[: constants.record_candidates]
    chosen = [candidate for candidate in every if candidate.replica == record.decision.replica]
    return best if chosen[0] in best else [*best[:-1], *chosen]


def candidates(record: Record, constants: Constants) -> list[Candidate]:
    field = record.field
    matched = None if field.matched_bytes is None else np.array(field.matched_bytes)
    parts = terms(list(np.array(field.columns).T), field.ask, matched, constants)
    if field.extra_ms is not None:
        parts["adapter"] = np.array(field.extra_ms)
    found = []
    for place, name in enumerate(record.names):
        if not name:
            continue
        mine = {term: round(float(values[place]), 3) for term, values in parts.items() if values[place]}
        why = record.excluded.get(name, "")
        if why or not all(isfinite(value) for value in mine.values()):
            found.append(Candidate(replica=name, excluded=why or "cannot serve the model"))
        else:
            found.append(Candidate(replica=name, expected_ms=round(sum(mine.values()), 3), terms=mine))
    return sorted(found, key=lambda candidate: (bool(candidate.excluded), candidate.expected_ms))


class Chapter(NamedTuple):
    """A decision in words; what came of it is in its events, or told by who knows more (why.py)."""

    decision: Decision
    at: float
    said: str
    details: list[str]
    """Figures and candidates, a line each."""
    notes: Sequence[tuple[float, str]]
    """(when, what) was said of it beside: why a request was not sent."""
    events: Sequence[tuple[float, str]]


def chapters(records: Sequence[Record], constants: Constants) -> list[Chapter]:
    found = []
    for record, told in zip(records, tell(records, constants), strict=True):
        times = f" ({told.times} looks)" if told.times > 1 else ""
        where = f" {told.replica}" if told.replica else ""
        details = []
        if told.verdict is Verdict.SEND:
            fresh = f"{told.uncached_tokens} of {told.prompt_tokens} prompt tokens to prefill"
            details.append(f"expected {told.expected_ttft_ms:.0f} ms, p90 {told.expected_p90_ms:.0f}; {fresh}")
        details += [_line(candidate) for candidate in told.candidates[:5]]
        if len(told.candidates) > 5:
            details.append(f"and {len(told.candidates) - 5} more")
        said = f"{told.verdict.value}{where}{times}: {told.reason}"
        found.append(Chapter(record.decision, record.at, said, details, record.notes, record.events))
    return found


def story(records: Sequence[Record], constants: Constants) -> str:
    """What the core knows by itself, in seconds since the first decision."""
    if not records:
        return "No decision about this request is remembered."
    first = records[0].at
    lines = []
    for chapter in chapters(records, constants):
        lines.append(f"{chapter.at - first:8.3f} s  {chapter.said}")
        lines += [f"{'':12}{detail}" for detail in chapter.details]
        lines += [f"{at - first:8.3f} s  {what}" for at, what in (*chapter.notes, *chapter.events)]
    return "\n".join(lines)


def _line(candidate: Candidate) -> str:
    if candidate.excluded:
        return f"{candidate.replica}: left out, {candidate.excluded}"
    parts = sorted(candidate.terms.items(), key=lambda item: -item[1])
    made_of = " + ".join(f"{term} {value:.0f}" for term, value in parts if value >= 0.5)
    return f"{candidate.replica}: {candidate.expected_ms:.0f} ms = {made_of or 'next to nothing'}"


def _same(one: Decision, other: Decision) -> bool:
    return one.verdict is other.verdict and other.verdict in REPEATED

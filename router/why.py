"""Why a request went where it did, and what became of it: the last requests, told as a story.

The dispatcher remembers decisions; this remembers outcomes, bounded in number, and puts both in one order when somebody
asks. No prompt and no answer is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import attrgetter

import msgspec

from router.call import Attempt, Call, Return
from router.core.errors import Code
from router.core.explain import Chapter
from router.core.model import Verdict
from router.core.usage import Usage

REMEMBERED = 4096
"""Requests; about 1 kB each."""
DETAIL = f"{'':12}"

_KINDS = {"first": "first attempt", "resume": "resumed", "hedge": "hedged"}


class Outcome(msgspec.Struct, frozen=True):
    """Of a call what its story is made from, and nothing of its headers and its body. Told when somebody asks."""

    tenant: str
    request_id: str
    endpoint: str
    model: str
    arrived: float
    ended: float
    held_s: float
    queue_wait_s: float
    attempts: list[Attempt]
    returns: list[Return]
    code: Code
    status: int
    message: str
    usage: Usage | None


_of = attrgetter(*Outcome.__struct_fields__)


class Recent:
    def __init__(self, decisions: Callable[[str], list[Chapter]], *, limit: int = REMEMBERED) -> None:
        self._decisions = decisions
        self._limit = limit
        self._outcomes: OrderedDict[str, Outcome] = OrderedDict()

    def note(self, call: Call) -> None:
        self._outcomes[call.request_id] = Outcome(*_of(call))
        if len(self._outcomes) > self._limit:
            self._outcomes.popitem(last=False)

    def belongs(self, request_id: str, tenant: str) -> bool:
        """Whether the request is remembered, and the tenant's."""
        outcome = self._outcomes.get(request_id)
        return outcome is not None and outcome.tenant == tenant

    def story(self, request_id: str, *, tenant: str) -> str | None:
        """None for requests that are not remembered, or are another tenant's."""
        outcome = self._outcomes.get(request_id)
        if outcome is None or outcome.tenant != tenant:
            return None
        # Ids are the clients' choice: decisions about another's request of the same id are none of this tenant's.
        during = [c for c in self._decisions(request_id) if outcome.arrived <= c.at <= outcome.ended]
        return "\n".join(_Telling(outcome).lines(during)) + "\n"


class _Telling:
    """Of one request; times are seconds since it arrived."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def lines(self, chapters: Sequence[Chapter]) -> list[str]:
        """Decisions in their order, each with the attempt that it led to; then attempts whose decision is forgotten."""
        it = self._outcome
        found = [self._at(it.arrived, f"{it.request_id} arrived: {it.endpoint} for {it.model or 'no known model'}")]
        left = {id(attempt.decision): attempt for attempt in it.attempts}
        for chapter in chapters:
            found += self._chapter(chapter, left.pop(id(chapter.decision), None))
        for attempt in left.values():
            found += [self._begun(attempt), *self._course(attempt)]
        return [*found, *(self._return(back) for back in it.returns), *self._end()]

    def _chapter(self, chapter: Chapter, attempt: Attempt | None) -> list[str]:
        details = [DETAIL + detail for detail in chapter.details]
        notes = [self._at(at, what) for at, what in chapter.notes]
        if attempt is not None:
            return [f"{self._begun(attempt)}, {chapter.decision.reason}", *details, *notes, *self._course(attempt)]
        unsent = chapter.decision.verdict is Verdict.SEND
        said = f"chosen: {chapter.decision.replica}, {chapter.decision.reason}" if unsent else chapter.said
        return [self._at(chapter.at, said), *details, *notes]

    def _begun(self, attempt: Attempt) -> str:
        kind = _KINDS.get(attempt.kind, attempt.kind)
        return self._at(
            attempt.started, f"{kind} on {attempt.replica.replica}, generation {attempt.replica.generation}"
        )

    def _course(self, attempt: Attempt) -> list[str]:
        found = []
        if attempt.first_token:
            took_ms = (attempt.first_token - attempt.started) * 1000
            expected_ms = attempt.decision.expected_ttft_ms
            said = f"first token after {took_ms:.0f} ms, expected {expected_ms:.0f} ms"
            found.append(self._at(attempt.first_token, said))
        said = f": {attempt.detail}" if attempt.detail else ""
        return [*found, self._at(attempt.ended, f"{attempt.code} after {attempt.events} events{said}")]

    def _return(self, back: Return) -> str:
        after = f" after {back.absent_s:.1f} s" if back.absent_s else ""
        return self._at(back.at, f"its client came back{after} at event {back.event}")

    def _end(self) -> list[str]:
        it = self._outcome
        said = f": {it.message}" if it.message else ""
        found = [self._at(it.ended, f"ended {it.code}, status {it.status}{said}")]
        if it.held_s >= 0.001:
            found.append(f"{DETAIL}held {it.held_s:.3f} s in all until its model was ready")
        if it.queue_wait_s:
            found.append(f"{DETAIL}waited {it.queue_wait_s:.3f} s in the router, the model being under pressure")
        if it.usage is not None:
            u = it.usage
            cached = f", {u.cached_tokens} of them cached" if u.cached_tokens > 0 else ""
            tokens = f"{u.prompt_tokens} prompt tokens{cached}, {u.output_tokens} output tokens"
            found.append(f"{DETAIL}{tokens} (by {u.source.value})")
        return found

    def _at(self, when: float, what: str) -> str:
        return f"{when - self._outcome.arrived:8.3f} s  {what}"

"""Why a request went where it did, and what became of it: the last requests, told as a story.

The dispatcher remembers decisions; this remembers outcomes, bounded in number. No prompt and no answer is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from operator import attrgetter

import msgspec

from router.call import Attempt, Call, Return
from router.core.errors import Code
from router.core.usage import Usage

REMEMBERED = 4096
"""Requests; about 1 kB each."""


class Outcome(msgspec.Struct, frozen=True):
    """Of a call what its story is made from, and nothing of its headers and its body. Told when somebody asks."""

    tenant: str
    endpoint: str
    model: str
    request_id: str
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
    def __init__(self, decisions: Callable[[str], str], *, limit: int = REMEMBERED) -> None:
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
        parts = ["What happened", *_tell(outcome), "", "What was decided", self._decisions(request_id)]
        return "\n".join(parts) + "\n"


def _tell(call: Outcome) -> list[str]:
    lines = [f"{0.0:8.3f} s  {call.endpoint} for {call.model or 'no known model'} arrived as {call.request_id}"]
    if call.held_s > 0.001:
        lines.append(f"{'':10}  held {call.held_s:.3f} s until the model was ready")
    if call.queue_wait_s:
        lines.append(f"{'':10}  waited {call.queue_wait_s:.3f} s in the router, the model being under pressure")
    for attempt in call.attempts:
        lines += _tell_attempt(call, attempt)
    lines += [_tell_return(call, back) for back in call.returns]
    ended = call.ended - call.arrived
    said = f": {call.message}" if call.message else ""
    lines.append(f"{ended:8.3f} s  ended {call.code}, status {call.status}{said}")
    if call.usage is not None:
        u = call.usage
        cached = f", {u.cached_tokens} of them cached" if u.cached_tokens > 0 else ""
        lines.append(
            f"{'':10}  {u.prompt_tokens} prompt tokens{cached}, {u.output_tokens} output tokens (by {u.source.value})"
        )
    return lines


def _tell_attempt(call: Outcome, attempt: Attempt) -> list[str]:
    started = attempt.started - call.arrived
    lines = [f"{started:8.3f} s  {attempt.kind} on {attempt.replica.replica} (generation {attempt.replica.generation})"]
    if attempt.first_token:
        first = attempt.first_token - call.arrived
        expected = attempt.decision.expected_ttft_ms
        took = (attempt.first_token - attempt.started) * 1000
        lines.append(f"{first:8.3f} s  first token after {took:.0f} ms, expected {expected:.0f} ms")
    ended = attempt.ended - call.arrived
    said = f": {attempt.detail}" if attempt.detail else ""
    lines.append(f"{ended:8.3f} s  {attempt.code} after {attempt.events} events{said}")
    return lines


def _tell_return(call: Outcome, back: Return) -> str:
    after = f" after {back.absent_s:.1f} s" if back.absent_s else ""
    return f"{back.at - call.arrived:8.3f} s  its client came back{after} at event {back.event}"

"""The record of one request's life, filled in by the steps of the walk and read by meter, trace and `why` at its end.

Plain facts only: nothing here decides or does anything. Times are seconds of the loop's clock; `*_unix_ns` wall time.
"""

from __future__ import annotations

import msgspec

from router.core.asked import Asked
from router.core.errors import Code
from router.core.limits import Patience
from router.core.model import Decision, Shape
from router.core.usage import Usage
from router.downstream.stream import Named, Outlet
from router.resume import Story
from wire.records import Replica


class Attempt(msgspec.Struct, kw_only=True):
    """One try on one replica."""

    replica: Replica
    decision: Decision
    span_id: int
    started: float
    kind: str = "first"
    """first, retry, resume or hedge."""
    first_token: float = 0.0
    ended: float = 0.0
    code: Code = Code.OK
    status: int = 0
    detail: str = ""
    usage: Usage | None = None
    """What this attempt cost its engine, as far as known; None when it reported nothing."""
    events: int = 0
    """Data events that came."""
    impatient: bool = False
    """Given up by a limit that the client named, sooner than the model's policy would: nobody's fault."""


class Return(msgspec.Struct, frozen=True):
    """The client of a kept stream came back (kept/)."""

    at: float
    absent_s: float
    """0 when its first connection was still there."""
    event: int
    """The last it had."""


class Call(msgspec.Struct, kw_only=True):
    request_id: str
    endpoint: str
    """chat, completions or embeddings."""
    path: str
    headers: Named
    """Until the request was read; of a kept stream longer, because its client comes back with the same key."""
    arrived: float
    arrived_unix_ns: int
    trace_id: int
    span_id: int
    parent_span_id: int = 0
    sampled: bool = False
    tracestate: str = ""
    explain: bool = False
    """The client asked for `x-switchyard-decision`."""
    fallback: bool = False
    """The client accepts the model that policy names instead, where its own has to be waited for."""
    limits: dict[bytes, bytes] = {}
    """Headers that name time limits, not read yet."""

    tenant: str = ""
    key_label: str = ""
    model: str = ""
    """A model that exists and the tenant may use; empty before that is known."""
    asked: Asked | None = None
    shape: Shape | None = None
    patience: Patience = Patience()

    held_s: float = 0.0
    """Waited for a model to become ready."""
    queue_wait_s: float = 0.0
    """Waited in the router because the model's replicas were under pressure (gate.py)."""
    attempts: list[Attempt] = []
    first_token: float = 0.0
    ended: float = 0.0
    code: Code = Code.INTERNAL
    """Until the walk has said otherwise."""
    status: int = 0
    message: str = ""
    usage: Usage | None = None
    """None when no engine was reached."""

    last_event_id: bytes = b""
    """The client comes back to a stream of its own, after this event."""
    story: Story | None = None
    """Of a stream that has begun."""
    kept: Outlet | None = None
    """Stands between the walk and a client that may come back."""
    returns: list[Return] = []
    """Grows after the end too, for as long as the end of the answer can be fetched again."""


def served_model(call: Call) -> str:
    """The model that answered where it was not the one asked for; of an answer under way, that answers."""
    for attempt in call.attempts:
        if attempt.decision.model and (attempt.first_token or attempt.code is Code.OK):
            return attempt.decision.model
    return ""

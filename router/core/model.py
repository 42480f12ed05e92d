"""The words of a decision: what is asked, what is known of the fleet, what was decided and why.

Pure data. Times are seconds on a monotonic clock unless a name says otherwise; terms of a decision are milliseconds.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Protocol

import msgspec

from router.core.stall import Heard
from wire.records import ModelPolicy, ModelState, Node, Replica, Tenant


class Shape(msgspec.Struct, kw_only=True):
    """What a decision may know of a request."""

    request_id: str
    model: str
    tenant: str = ""
    prompt: bytes | memoryview = b""
    """Canonical bytes of the prompt (messages, tools), as hashed for prefix matching. Never logged."""
    max_tokens: int = 0
    """Limit the client gave, 0 when none."""
    choices: int = 1
    priority: int = 0
    session: str = ""
    embedding: bool = False
    deadline: float = 0.0
    """First token wanted by then; 0 when the client named no deadline."""
    fallback_allowed: bool = False
    """The client accepts an answer of the model's fallback when none of its replicas is warm."""
    delivered_tokens: int = 0
    """Tokens the client has already, when a broken stream is continued: they are prefilled again."""


class ReplicaLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One replica's figures in a load report (see node.proto for units)."""

    replica: str
    generation: int = 0
    state: ModelState = ModelState.READY
    load_remaining_s: float = 0.0
    running: int = 0
    waiting: int = 0
    waiting_uncached_tokens: float = -1.0
    kv_use: float = 0.0
    kv_capacity_tokens: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    idle_s: float = 0.0
    scraped_age_s: float = 0.0
    seen: int = 0
    adapters: tuple[str, ...] = ()


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    epoch: int
    sequence: int
    replicas: tuple[ReplicaLoad, ...]


class Fleet(msgspec.Struct, frozen=True):
    """Membership and policy at one moment: one object, replaced whole."""

    revision: int = 0
    nodes: dict[str, Node] = {}
    replicas: dict[str, Replica] = {}
    models: dict[str, ModelPolicy] = {}
    tenants: dict[str, Tenant] = {}
    routers: int = 1
    """Routers of this region, this one included."""


class Verdict(enum.StrEnum):
    SEND = "send"
    """To `replica`, now."""
    HOLD = "hold"
    """Nothing can serve yet; ask again after `retry_after_s` or on news of the fleet (a model is loading)."""
    WAKE = "wake"
    """Ask `replica`'s agent to load or wake the model, and hold."""
    SPILL = "spill"
    """To the router of `region`: it is clearly faster there, the way included. Only when peers' figures were given."""
    NONE = "none"
    """No replica of a known model; 503 with `retry_after_s`."""
    UNKNOWN_MODEL = "unknown_model"
    MISFIT = "misfit"
    """The model's replicas serve another endpoint: waiting would not help."""


class Candidate(msgspec.Struct, kw_only=True):
    """A replica that was looked at: its expected time with the terms it is made of, or why it was left out."""

    replica: str
    expected_ms: float = 0.0
    terms: dict[str, float] = {}
    """Milliseconds by name of the term; what `switchyard why` prints."""
    excluded: str = ""


class Decision(msgspec.Struct, kw_only=True):
    verdict: Verdict
    replica: str = ""
    policy: str = ""
    expected_ttft_ms: float = 0.0
    expected_p90_ms: float = 0.0
    uncached_tokens: int = 0
    prompt_tokens: int = 0
    """Estimate before the engine has counted."""
    runner_up: str = ""
    reason: str = ""
    """A sentence for people."""
    retry_after_s: float = 0.0
    explored: bool = False
    model: str = ""
    """Set when another model than the one asked for is to answer: the substitute that policy names."""
    region: str = ""
    """Set with SPILL: the region whose router is to serve it."""


class Ending(enum.StrEnum):
    """How one attempt on a replica ended, as far as the replica is concerned."""

    COMPLETE = "complete"
    CANCELLED = "cancelled"
    """By us or the client; says nothing bad about the replica, its elapsed time still counts as evidence."""
    REFUSED = "refused"
    """The engine answered that it is too busy (429, 503)."""
    REJECTED = "rejected"
    """The client's own error (400): the replica did right."""
    FAILED = "failed"
    """Connection refused, reset, 5xx, in-band error, malformed or stalled stream."""


class Flight(Protocol):
    """One attempt in flight, counted from `begin` until `end`. Calls after `end` do nothing."""

    def first_token(self, now: float) -> None: ...

    def progress(self, tokens: int, now: float) -> None:
        """`tokens` delivered since the last call; called now and then, not per token."""
        ...

    def end(
        self, ending: Ending, now: float, *, prompt_tokens: int = 0, cached_tokens: int = -1, output_tokens: int = 0
    ) -> None:
        """Token counts as the engine reported them; 0 or -1 when it did not."""
        ...


class Dispatcher(Protocol):
    """All that the shell asks of the core. One per router process, called from one thread, never blocks."""

    def apply(self, fleet: Fleet, now: float) -> None: ...

    def report(self, report: LoadReport, now: float) -> None: ...

    def node_lost(self, node: str, now: float) -> None:
        """The agent's stream broke: its figures age from here on; it says nothing about its engines."""
        ...

    def pick(self, shape: Shape, *, exclude: Collection[str] = (), now: float) -> Decision: ...

    def substitute(self, shape: Shape, *, exclude: Collection[str] = (), now: float) -> Decision | None:
        """A ready replica of the model that policy names instead, where the client allows it."""
        ...

    def begin(self, decision: Decision, shape: Shape, now: float) -> Flight: ...

    def pool(self, model: str, *, embedding: bool) -> tuple[str, bool]:
        """Those that wait for the same replicas have the same pool."""
        ...

    def ahead_ms(self, pool: tuple[str, bool], now: float) -> float:
        """Expected wait of a new request behind others, where it is shortest; 0 where nobody could serve."""
        ...

    def work_tokens(self, decision: Decision, shape: Shape) -> float:
        """What the request costs those that queue with it."""
        ...

    def note(self, request_id: str, what: str, now: float) -> None:
        """Beside the last decision about the request, for `why`."""
        ...

    def observe_rtt(self, node: str, rtt_s: float) -> None:
        """Of any small exchange with the node."""
        ...

    def explain(self, shape: Shape, *, now: float) -> list[Candidate]:
        """Every replica of the model with its terms, best first; for `why`, not for the hot path."""
        ...

    def decode_ms(self, decision: Decision, shape: Shape) -> float:
        """Expected milliseconds from the first token of an answer to its last, where the decision sends it."""
        ...

    def heard(self, replica: str, now: float) -> Heard | None:
        """What its agent last said of it, as far as silence goes; None while nobody speaks for it."""
        ...

    def sent(self, node: str) -> dict[str, int]:
        """Requests sent so far to each replica of the node: what WatchLoad tells the agent."""
        ...

    def in_flight(self) -> dict[str, int]:
        """Requests in flight by replica, zeros left out."""
        ...

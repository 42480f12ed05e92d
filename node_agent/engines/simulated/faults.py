"""Scripted misbehaviour: which fault, if any, a request meets. Faults come from the command line or the admin call,
never from a request. Chance is a seeded generator given by the caller, so a run can be repeated. Pure.
"""

from __future__ import annotations

import enum
import random
from typing import Annotated

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]


class Kind(enum.StrEnum):
    # Of the whole replica, while they last
    SLOW = "slow"
    """Every step lasts `factor` times as long."""
    REFUSE = "refuse"
    """Connections are refused; open ones go on. Needs `duration_s`: the admin call is on the same port."""
    CRASH = "crash"
    """At once: every connection is cut, all state is lost, connections are refused for `duration_s`."""
    FREEZE = "freeze"
    """No step is done, while everything else answers: a frozen engine core."""
    EXIT = "exit"
    """The process ends at once with `status` as exit code, with all its replicas."""
    # Instead of an answer
    ERROR = "error"
    """`status` 429 (with `retry_after_s`), 500, 503 or any other, with vLLM's body."""
    HANG = "hang"
    """The request is read and never answered."""
    CONTEXT_LENGTH = "context_length"
    """400, as for a prompt that is too long."""
    EMPTY = "empty"
    """200 and the head of a stream, then [DONE] without any event; a whole answer has no choices."""
    # Within an answer, once `after_tokens` tokens of it have been sent
    DELAY = "delay"
    """The first token comes `delay_s` later."""
    STALL = "stall"
    """No more events; the connection stays open."""
    CUT = "cut"
    """FIN in the middle, as from a killed server."""
    RESET = "reset"
    """RST in the middle."""
    MALFORMED = "malformed"
    """One event is cut-off JSON; the stream goes on."""
    ENGINE_DEAD = "engine_dead"
    """An error event, [DONE] and a clean end, as vLLM does when its core dies."""
    ABORT = "abort"
    """finish_reason "abort" and [DONE], as from a terminated server."""
    CONTENT_FILTER = "content_filter"
    """finish_reason "content_filter" and [DONE]."""
    NO_DONE = "no_done"
    """Everything as it should be, but for [DONE]."""


REPLICA_WIDE = frozenset({Kind.SLOW, Kind.REFUSE, Kind.CRASH, Kind.FREEZE, Kind.EXIT})
AT_START = frozenset({Kind.ERROR, Kind.HANG, Kind.CONTEXT_LENGTH, Kind.EMPTY, Kind.DELAY})


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the admin call takes and gives."""

    kind: Kind
    id: str = ""
    """Given by the engine when empty."""
    after_tokens: Count = 0
    """Of one answer, over all its choices."""
    probability: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """That a request meets it."""
    remaining: Count | None = None
    """Requests that will still meet it; without it, all."""
    duration_s: Seconds | None = None
    """From now; without it, until it is deleted."""
    factor: Annotated[float, Meta(gt=0)] = 4.0
    status: int = 500
    retry_after_s: Count | None = None
    delay_s: Seconds = 1.0
    met: int = 0
    """Requests that met it so far."""


class Faults:
    """The faults of one replica."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._active: dict[str, tuple[Fault, float]] = {}
        self._count = 0

    def add(self, fault: Fault, now: float) -> Fault:
        """Raises ValueError for one that could never be taken back."""
        if fault.kind in (Kind.REFUSE, Kind.CRASH) and fault.duration_s is None:
            raise ValueError(f"{fault.kind} needs duration_s, because it closes the port that could end it")
        self._count += 1
        fault.id = fault.id or f"f{self._count}"
        self._active[fault.id] = (fault, now + (float("inf") if fault.duration_s is None else fault.duration_s))
        return fault

    def remove(self, id_: str) -> bool:
        return self._active.pop(id_, None) is not None

    def clear(self) -> None:
        self._active.clear()

    def active(self, now: float) -> list[Fault]:
        return [fault for fault, until in self._live(now)]

    def draw(self, now: float) -> Fault | None:
        """The fault that a new request meets: the oldest that applies, one at most."""
        if not self._active:
            return None
        for fault, _ in self._live(now):
            if fault.kind in REPLICA_WIDE or self._rng.random() >= fault.probability:
                continue
            fault.met += 1
            if fault.remaining is not None:
                fault.remaining -= 1
            return fault
        return None

    def slow_factor(self, now: float) -> float:
        factor = 1.0
        if self._active:
            for fault, _ in self._live(now):
                if fault.kind is Kind.SLOW:
                    factor *= fault.factor
        return factor

    def frozen(self, now: float) -> bool:
        return bool(self._active) and any(f.kind is Kind.FREEZE for f, _ in self._live(now))

    def _live(self, now: float) -> list[tuple[Fault, float]]:
        over = [i for i, (fault, until) in self._active.items() if until <= now or fault.remaining == 0]
        for i in over:
            del self._active[i]
        return list(self._active.values())

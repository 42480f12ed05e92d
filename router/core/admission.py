"""Who may go on to be sent, who waits in the router, and who is told to come back later.

Pressure of a model is its expected time to the first token over what the request may wait. Without pressure nobody
waits. Under pressure requests queue here instead of in engines, where they can still be ordered and leave at once when
their client leaves: highest priority first (it rises with the time waited), tenants in turn by deficit round robin
weighted by tokens. Those that could be done without are shed before the limit is reached, and nobody is let in whose
turn would come too late. Pure: the shell says when to release, and what is expected now.
Sources: routing.md section 1.3 (DAGOR, llm-d's p = min(1, saturation^5), deficit round robin) and the end of 2.6.

    ticket = admission.enter(shape, expected_ms=decision.expected_ttft_ms, priority=.., weight=.., now=now)
    WAITING: keep it; call release(expected, now) when a request ends or every 50 ms; leave(ticket) when the client goes
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable
from math import ceil

import msgspec

from router.core.model import Shape
from router.core.policies.base import Rng


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    wait_s: float = 10.0
    """First token wanted within, when the request names no deadline: pressure 1 is here [own]."""
    begin: float = 0.5
    """Pressure from which requests wait in the router."""
    queue: int = 1000
    """Waiting requests per model."""
    tenant_share: float = 0.5
    """Largest part of a full queue that one tenant may have while others wait."""
    ageing_s: float = 10.0
    """So long a wait is worth one step of priority: nobody starves."""
    quantum_tokens: float = 2048.0
    """Added to a tenant's credit per turn and unit of weight: about one prompt."""
    retry_ceiling_s: float = 120.0


class Turn(enum.StrEnum):
    ADMITTED = "admitted"
    WAITING = "waiting"
    REJECTED = "rejected"
    LEFT = "left"


class Ticket:
    __slots__ = (
        "deadline",
        "entered_at",
        "model",
        "priority",
        "reason",
        "retry_after_s",
        "tenant",
        "tokens",
        "turn",
        "weight",
    )

    def __init__(
        self,
        *,
        model: str,
        tenant: str,
        priority: int,
        weight: float,
        tokens: float,
        entered_at: float,
        deadline: float,
    ) -> None:
        self.model, self.tenant, self.priority, self.weight = model, tenant, priority, max(weight, 0.01)
        self.tokens, self.entered_at, self.deadline = tokens, entered_at, deadline
        self.turn = Turn.ADMITTED
        self.retry_after_s = 0.0
        self.reason = ""

    def rank(self, now: float, ageing_s: float) -> int:
        return self.priority + int((now - self.entered_at) / ageing_s)


class _Tenant:
    __slots__ = ("credit", "tickets")

    def __init__(self) -> None:
        self.credit = 0.0
        self.tickets: deque[Ticket] = deque()


class _Queue:
    """The waiting requests of one model."""

    __slots__ = ("admitted_at", "length", "seconds_each", "tenants")

    def __init__(self) -> None:
        self.tenants: OrderedDict[str, _Tenant] = OrderedDict()
        """Next in turn first."""
        self.length = 0
        self.admitted_at = -1.0
        self.seconds_each = 0.0
        """Between two admissions from the queue, as seen lately."""

    def remove(self, ticket: Ticket) -> None:
        tenant = self.tenants[ticket.tenant]
        tenant.tickets.remove(ticket)
        self.length -= 1
        if not tenant.tickets:
            del self.tenants[ticket.tenant]


class Admission:
    def __init__(self, *, rng: Rng, limits: Limits | None = None) -> None:
        self._rng = rng
        self._limits = limits or Limits()
        self._queues: dict[str, _Queue] = {}
        self._pushed_out: list[Ticket] = []

    def enter(
        self,
        shape: Shape,
        *,
        expected_ms: float,
        now: float,
        priority: int = 0,
        weight: float = 1.0,
        tokens: float = 1.0,
    ) -> Ticket:
        """`expected_ms` is what `pick` expects for the request; `tokens` what it costs, for the shares of tenants."""
        limits = self._limits
        ticket = Ticket(
            model=shape.model,
            tenant=shape.tenant,
            priority=priority + shape.priority,
            weight=weight,
            tokens=tokens,
            entered_at=now,
            deadline=shape.deadline or now + limits.wait_s,
        )
        queue = self._queues.get(shape.model)
        pressure = self._pressure(ticket, expected_ms, now)
        if pressure < limits.begin and queue is None:
            return ticket
        queue = queue or _Queue()
        wait_s = expected_ms / 1000.0 + queue.length * queue.seconds_each
        if ticket.priority < 0 and self._rng.random() < min(1.0, pressure) ** 5:
            return self._reject(ticket, wait_s, "the model is busy, and the request may be shed")
        if now + wait_s > ticket.deadline:
            return self._reject(ticket, wait_s, f"a first token is expected only in {wait_s:.1f} s")
        if queue.length >= limits.queue and not self._make_room(queue, ticket, wait_s, now):
            return self._reject(ticket, wait_s, "too many requests wait for the model")
        self._queues[shape.model] = queue
        tenant = queue.tenants.setdefault(ticket.tenant, _Tenant())
        tenant.tickets.append(ticket)
        queue.length += 1
        ticket.turn = Turn.WAITING
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The client went away, or the request is given up; at any time, also when it no longer waits."""
        if ticket.turn is Turn.WAITING:
            self._drop(ticket)
            ticket.turn = Turn.LEFT

    def release(self, expected: Callable[[str], float], now: float) -> list[Ticket]:
        """At most one ticket per model whose turn has come, and those that waited too long or were pushed out
        (REJECTED). `expected` gives the milliseconds to a first token of a model as of this moment: send what was
        admitted, then call again until nothing is."""
        done, self._pushed_out = self._pushed_out, []
        for model in list(self._queues):
            queue = self._queues[model]
            done += self._expire(queue, now)
            if queue.length:
                ticket = self._next(queue, now)
                if self._pressure(ticket, expected(model), now) < self._limits.begin:
                    self._admit(queue, ticket, now)
                    done.append(ticket)
            if not queue.length:
                del self._queues[model]
        return done

    def waiting(self) -> dict[str, int]:
        return {model: queue.length for model, queue in self._queues.items()}

    def _pressure(self, ticket: Ticket, expected_ms: float, now: float) -> float:
        """Of the time that was given in all, so that waiting here does not make a request look less patient."""
        return expected_ms / 1000.0 / max(0.001, ticket.deadline - ticket.entered_at)

    def _next(self, queue: _Queue, now: float) -> Ticket:
        """The highest rank first; among tenants that have it, the one in turn with enough credit."""
        heads = {name: self._head(tenant, now) for name, tenant in queue.tenants.items()}
        top = max(ticket.rank(now, self._limits.ageing_s) for ticket in heads.values())
        able = [name for name, ticket in heads.items() if ticket.rank(now, self._limits.ageing_s) == top]
        while True:
            for name in able:
                if queue.tenants[name].credit >= heads[name].tokens:
                    return heads[name]
            rounds = min(self._rounds(queue.tenants[name], heads[name]) for name in able)
            for name in able:
                queue.tenants[name].credit += rounds * self._limits.quantum_tokens * heads[name].weight

    def _rounds(self, tenant: _Tenant, head: Ticket) -> int:
        return max(1, ceil((head.tokens - tenant.credit) / (self._limits.quantum_tokens * head.weight)))

    def _head(self, tenant: _Tenant, now: float) -> Ticket:
        """A tenant's own best: rank first, then age."""
        return max(tenant.tickets, key=lambda ticket: (ticket.rank(now, self._limits.ageing_s), -ticket.entered_at))

    def _admit(self, queue: _Queue, ticket: Ticket, now: float) -> None:
        tenant = queue.tenants[ticket.tenant]
        tenant.credit -= ticket.tokens
        queue.tenants.move_to_end(ticket.tenant)
        queue.remove(ticket)
        ticket.turn = Turn.ADMITTED
        if queue.admitted_at >= 0.0:
            queue.seconds_each += 0.1 * (now - queue.admitted_at - queue.seconds_each)
        queue.admitted_at = now

    def _expire(self, queue: _Queue, now: float) -> list[Ticket]:
        late = [t for tenant in queue.tenants.values() for t in tenant.tickets if now > t.deadline]
        for ticket in late:
            queue.remove(ticket)
            self._reject(ticket, self._limits.wait_s, "its turn did not come in time")
        return late

    def _make_room(self, queue: _Queue, ticket: Ticket, wait_s: float, now: float) -> bool:
        """Push out the newest of the lowest rank, of the tenant with most waiting, if the newcomer ranks higher or its
        tenant has less than its share."""
        longest = max(queue.tenants.values(), key=lambda tenant: len(tenant.tickets))
        victim = min(longest.tickets, key=lambda t: (t.rank(now, self._limits.ageing_s), -t.entered_at))
        mine = queue.tenants.get(ticket.tenant)
        crowded = len(longest.tickets) > self._limits.tenant_share * self._limits.queue and mine is not longest
        if ticket.rank(now, self._limits.ageing_s) <= victim.rank(now, self._limits.ageing_s) and not crowded:
            return False
        queue.remove(victim)
        self._pushed_out.append(self._reject(victim, wait_s, "made room for another request"))
        return True

    def _drop(self, ticket: Ticket) -> None:
        queue = self._queues[ticket.model]
        queue.remove(ticket)
        if not queue.length:
            del self._queues[ticket.model]

    def _reject(self, ticket: Ticket, wait_s: float, reason: str) -> Ticket:
        ticket.turn, ticket.reason = Turn.REJECTED, reason
        ticket.retry_after_s = float(min(max(1, ceil(wait_s)), self._limits.retry_ceiling_s))
        return ticket

"""Who may go on to be sent, who waits in the router, and who is told to come back later.

What is measured is the wait: expected milliseconds that a new request of a pool (the replicas of one base model) would
spend behind others in the engine with the least of it. Below `begin_s` everyone goes on. Above it requests queue here
instead of in engines, where they can still be ordered and leave at once when their client leaves: highest priority
first (it rises with the time waited), tenants in turn by deficit round robin, weighted, counted in tokens of work.
Pressure is the expected wait over what a request may wait. Those that can be done without are shed before it is 1, and
nobody is let in whose turn would come too late. Pure: the shell says when to release, and what is expected now.
Sources: routing.md section 1.3 (DAGOR: queueing time; llm-d: p = min(1, saturation^5); deficit round robin) and the end
of 2.6.

    ticket = admission.enter(pool, tenant, ahead_ms=.., now=now, ..)
    WAITING: keep it; call release(ahead, now) when something may have changed; leave(ticket) when the client goes
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Iterator
from math import ceil

import msgspec

from router.core.policies.base import Rng
from wire.records import AdmissionClass

Pool = tuple[str, bool]
"""Base model, and whether it is for embeddings: those that wait for the same replicas."""

INTERACTIVE_S = 10.0
BATCH_S = 600.0
BATCH_PRIORITY = -1
PACE_RATE = 0.1
PACES = 1024
"""Pools whose pace is remembered."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The first five are settings of the router, named `admission_*` there."""

    begin_s: float = 2.0
    """Expected wait in engines from which requests wait in the router instead. A tenth of a second of backlog keeps an
    engine busy; the rest is for predictions that are wrong [own]."""
    wait_s: float = 60.0
    """Longest wait of a request, where neither its client nor its model's class says: pressure 1 is here [own]."""
    queue: int = 1000
    """Waiting requests per pool."""
    tenant_share: float = 0.5
    """Part of a full queue above which a tenant makes room for others."""
    ageing_s: float = 10.0
    """So long a wait is worth one step of priority: nobody starves."""
    quantum_tokens: float = 2048.0
    """Added to a tenant's credit per turn and unit of weight: about one prompt."""
    retry_ceiling_s: float = 120.0
    retry_spread: float = 0.25
    """Added at random to what is said in Retry-After: those refused together must not come back together."""


class Turn(enum.StrEnum):
    ADMITTED = "admitted"
    WAITING = "waiting"
    REJECTED = "rejected"
    LEFT = "left"


class Why(enum.StrEnum):
    """Why a ticket was rejected."""

    NONE = ""
    SHED = "shed"
    LATE = "late"
    FULL = "full"
    SHARE = "share"
    """The queue is full, and with requests of the same tenant."""
    PUSHED_OUT = "pushed_out"
    EXPIRED = "expired"


class Ticket:
    __slots__ = (
        "before",
        "deadline",
        "entered_at",
        "limit",
        "number",
        "pool",
        "priority",
        "reason",
        "retry_after_s",
        "tenant",
        "tokens",
        "turn",
        "wait_s",
        "weight",
        "why",
    )

    def __init__(self, *, number: int, pool: Pool, tenant: str, priority: int, weight: float, tokens: float) -> None:
        self.number, self.pool, self.tenant, self.priority = number, pool, tenant, priority
        self.weight, self.tokens = max(weight, 0.01), max(tokens, 1.0)
        self.entered_at = self.deadline = 0.0
        self.wait_s = 0.0
        """May wait so long in all."""
        self.limit = ""
        """What says so, in words that a client can look up."""
        self.before = 0
        """Waiting requests of the pool when it entered."""
        self.turn = Turn.ADMITTED
        self.why = Why.NONE
        self.retry_after_s = 0.0
        self.reason = ""

    def rank(self, now: float, ageing_s: float) -> int:
        return self.priority + int((now - self.entered_at) / ageing_s)


class _Tenant:
    """The waiting requests of one tenant: oldest first within each priority, so that only the ends need a look."""

    __slots__ = ("credit", "length", "lines")

    def __init__(self) -> None:
        self.credit = 0.0
        self.length = 0
        self.lines: dict[int, OrderedDict[int, Ticket]] = {}
        """By priority; within one, the older always ranks higher."""

    def add(self, ticket: Ticket) -> None:
        self.lines.setdefault(ticket.priority, OrderedDict())[ticket.number] = ticket
        self.length += 1

    def remove(self, ticket: Ticket) -> None:
        line = self.lines[ticket.priority]
        del line[ticket.number]
        self.length -= 1
        if not line:
            del self.lines[ticket.priority]

    def head(self, now: float, ageing_s: float) -> Ticket:
        oldest = (next(iter(line.values())) for line in self.lines.values())
        return max(oldest, key=lambda ticket: (ticket.rank(now, ageing_s), -ticket.entered_at))

    def last(self, now: float, ageing_s: float) -> Ticket:
        newest = (next(reversed(line.values())) for line in self.lines.values())
        return min(newest, key=lambda ticket: (ticket.rank(now, ageing_s), -ticket.entered_at))

    def __iter__(self) -> Iterator[Ticket]:
        for line in self.lines.values():
            yield from line.values()


class _Queue:
    """The waiting requests of one pool."""

    __slots__ = ("admitted_at", "length", "tenants")

    def __init__(self) -> None:
        self.tenants: OrderedDict[str, _Tenant] = OrderedDict()
        """Next in turn first."""
        self.length = 0
        self.admitted_at = -1.0

    def add(self, ticket: Ticket) -> None:
        self.tenants.setdefault(ticket.tenant, _Tenant()).add(ticket)
        self.length += 1

    def remove(self, ticket: Ticket) -> None:
        tenant = self.tenants[ticket.tenant]
        tenant.remove(ticket)
        self.length -= 1
        if not tenant.length:
            del self.tenants[ticket.tenant]


class Admission:
    def __init__(self, *, rng: Rng, limits: Limits | None = None) -> None:
        self._rng = rng
        self.limits = limits or Limits()
        self.queues: dict[Pool, _Queue] = {}
        """Of pools where somebody waits; empty while nothing is under pressure."""
        self._paces: OrderedDict[Pool, tuple[float, int]] = OrderedDict()
        """Seconds between two that were released, as seen lately, and how often that was seen."""
        self._pushed_out: list[Ticket] = []
        self._numbers = 0

    def enter(
        self,
        pool: Pool,
        tenant: str,
        *,
        ahead_ms: float,
        now: float,
        own_ms: float = 0.0,
        deadline: float = 0.0,
        class_: AdmissionClass = AdmissionClass.STANDARD,
        priority: int = 0,
        weight: float = 1.0,
        tokens: float = 1.0,
    ) -> Ticket:
        """`ahead_ms`: expected wait in engines. `deadline`: first token wanted by then, 0 where the client named none;
        only then `own_ms` counts, what the request itself takes to its first token. `tokens`: its work, for turns."""
        self._numbers += 1
        if class_ is AdmissionClass.BATCH:
            priority += BATCH_PRIORITY
        ticket = Ticket(number=self._numbers, pool=pool, tenant=tenant, priority=priority, weight=weight, tokens=tokens)
        queue = self.queues.get(pool)
        length = ticket.before = queue.length if queue else 0
        wait_s = ahead_ms / 1000.0 + self._line_s(pool, length)
        self._limit(ticket, class_, deadline=deadline, now=now)
        named = ticket.deadline == deadline
        if wait_s and wait_s + (own_ms / 1000.0 if named else 0.0) > ticket.wait_s:
            return self._late(ticket, wait_s, own_ms if named else 0.0)
        if queue is None and ahead_ms < 1000.0 * self.limits.begin_s:
            return ticket
        pressure = wait_s / min(ticket.wait_s, self.limits.wait_s)
        if priority < 0 and self._rng.random() < min(1.0, pressure) ** 5:
            return self._shed(ticket, wait_s, pressure)
        if queue is None:
            queue = self.queues[pool] = _Queue()
        if queue.length >= self.limits.queue and not self._make_room(queue, ticket, wait_s, now):
            return self._full(queue, ticket, wait_s)
        queue.add(ticket)
        ticket.turn = Turn.WAITING
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The client went away, or the request is given up; at any time, also when it no longer waits."""
        if ticket.turn is Turn.WAITING:
            self._remove(ticket)
            ticket.turn = Turn.LEFT

    def release(self, ahead_ms: Callable[[Pool], float], now: float) -> list[Ticket]:
        """At most one ticket per pool whose turn has come, and those that were pushed out (REJECTED). `ahead_ms` is the
        expected wait in engines as of this moment: send what was admitted, then call again until nothing is."""
        done, self._pushed_out = self._pushed_out, []
        for pool, queue in list(self.queues.items()):
            if ahead_ms(pool) < 1000.0 * self.limits.begin_s:
                ticket = self._next(queue, now)
                self._admit(queue, ticket, now)
                done.append(ticket)
        return done

    def expire(self, now: float) -> list[Ticket]:
        """Those that have waited too long (REJECTED). Looks at every ticket, so for a timer, not for an event."""
        late = [t for queue in self.queues.values() for tenant in queue.tenants.values() for t in tenant]
        late = [ticket for ticket in late if now > ticket.deadline]
        for ticket in late:
            length = self.queues[ticket.pool].length
            self._remove(ticket)
            wait_s = self._line_s(ticket.pool, length)
            self._reject(
                ticket,
                Why.EXPIRED,
                wait_s,
                f"it waited {now - ticket.entered_at:.1f} s in the router without its turn coming, and may wait "
                f"{ticket.wait_s:g} s ({ticket.limit})",
            )
        return late

    def waiting(self) -> dict[Pool, int]:
        return {pool: queue.length for pool, queue in self.queues.items()}

    # Inside

    def _limit(self, ticket: Ticket, class_: AdmissionClass, *, deadline: float, now: float) -> None:
        ticket.entered_at = now
        match class_:
            case AdmissionClass.INTERACTIVE:
                ticket.wait_s, ticket.limit = INTERACTIVE_S, "the model's admission class, interactive"
            case AdmissionClass.BATCH:
                ticket.wait_s, ticket.limit = BATCH_S, "the model's admission class, batch"
            case _:
                ticket.wait_s, ticket.limit = self.limits.wait_s, "admission_wait_s"
        ticket.deadline = now + ticket.wait_s
        if deadline and deadline <= ticket.deadline:
            ticket.deadline, ticket.wait_s = deadline, max(0.001, deadline - now)
            ticket.limit = "x-switchyard-first-token-limit-s"

    def _next(self, queue: _Queue, now: float) -> Ticket:
        """The highest rank first; among tenants that have it, the one in turn with enough credit."""
        ageing_s = self.limits.ageing_s
        heads = {name: tenant.head(now, ageing_s) for name, tenant in queue.tenants.items()}
        top = max(ticket.rank(now, ageing_s) for ticket in heads.values())
        able = [name for name, ticket in heads.items() if ticket.rank(now, ageing_s) == top]
        while True:
            for name in able:
                if queue.tenants[name].credit >= heads[name].tokens:
                    return heads[name]
            rounds = min(self._rounds(queue.tenants[name], heads[name]) for name in able)
            for name in able:
                queue.tenants[name].credit += rounds * self.limits.quantum_tokens * heads[name].weight

    def _rounds(self, tenant: _Tenant, head: Ticket) -> int:
        return max(1, ceil((head.tokens - tenant.credit) / (self.limits.quantum_tokens * head.weight)))

    def _admit(self, queue: _Queue, ticket: Ticket, now: float) -> None:
        queue.tenants[ticket.tenant].credit -= ticket.tokens
        queue.tenants.move_to_end(ticket.tenant)
        self._remove(ticket)
        ticket.turn = Turn.ADMITTED
        if queue.admitted_at >= 0.0:
            self._learn_pace(ticket.pool, now - queue.admitted_at)
        queue.admitted_at = now

    def _line_s(self, pool: Pool, length: int) -> float:
        """Until so many that wait have gone; 0 while nobody has been seen to go."""
        return length * self._paces[pool][0] if pool in self._paces else 0.0

    def _learn_pace(self, pool: Pool, seconds: float) -> None:
        """The plain mean at first, since several may go at once, and then a fading one."""
        known, seen = self._paces.get(pool, (0.0, 0))
        self._paces[pool] = known + max(PACE_RATE, 1.0 / (seen + 1)) * (seconds - known), seen + 1
        self._paces.move_to_end(pool)
        if len(self._paces) > PACES:
            self._paces.popitem(last=False)

    def _make_room(self, queue: _Queue, ticket: Ticket, wait_s: float, now: float) -> bool:
        """Push out the newest of the lowest rank, of the tenant with most waiting, if the newcomer ranks higher or its
        tenant has less than its share."""
        ageing_s = self.limits.ageing_s
        longest = max(queue.tenants.values(), key=lambda tenant: tenant.length)
        victim = longest.last(now, ageing_s)
        mine = queue.tenants.get(ticket.tenant)
        crowded = longest.length > self.limits.tenant_share * self.limits.queue and mine is not longest
        if ticket.rank(now, ageing_s) <= victim.rank(now, ageing_s) and not crowded:
            return False
        self._remove(victim)
        self.queues[ticket.pool] = queue  # a queue of one is gone for a moment
        reason = f"it made room for another request: {self.limits.queue} may wait for the model (admission_queue)"
        self._pushed_out.append(self._reject(victim, Why.PUSHED_OUT, wait_s, reason))
        return True

    def _remove(self, ticket: Ticket) -> None:
        queue = self.queues[ticket.pool]
        queue.remove(ticket)
        if not queue.length:
            del self.queues[ticket.pool]

    def _late(self, ticket: Ticket, wait_s: float, own_ms: float) -> Ticket:
        first_s = wait_s + own_ms / 1000.0
        reason = (
            f"a first token is expected only in {first_s:.1f} s, and it may wait {ticket.wait_s:.3g} s ({ticket.limit})"
        )
        return self._reject(ticket, Why.LATE, wait_s, reason)

    def _shed(self, ticket: Ticket, wait_s: float, pressure: float) -> Ticket:
        reason = (
            f"the expected wait of {wait_s:.1f} s is {pressure:.0%} of what requests may wait, and those of a priority "
            "below 0 are shed before it is all"
        )
        return self._reject(ticket, Why.SHED, wait_s, reason)

    def _full(self, queue: _Queue, ticket: Ticket, wait_s: float) -> Ticket:
        limit = self.limits.queue
        mine = queue.tenants.get(ticket.tenant)
        if mine is not None and mine.length > self.limits.tenant_share * limit:
            waiting = f"{mine.length} of the tenant's requests wait for the model already"
            return self._reject(ticket, Why.SHARE, wait_s, f"{waiting}, of {limit} in all (admission_queue)")
        return self._reject(ticket, Why.FULL, wait_s, f"{limit} requests wait for the model already (admission_queue)")

    def _reject(self, ticket: Ticket, why: Why, wait_s: float, reason: str) -> Ticket:
        ticket.turn, ticket.why, ticket.reason = Turn.REJECTED, why, reason
        wait_s *= 1.0 + self.limits.retry_spread * self._rng.random()
        ticket.retry_after_s = float(min(max(1, ceil(wait_s)), self.limits.retry_ceiling_s))
        return ticket

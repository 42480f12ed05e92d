"""Where requests wait while the replicas of their model are under pressure; the walk asks here whether they may go.

Who waits, who goes next and who is refused is decided in core/admission.py; here its tickets meet futures. Released by
what happens (a first token, an attempt's end, a load report, a new view) and by the sweep, one request of a pool after
the other: the next goes when the one before is counted. No timer and no task per request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from router.call import Call
from router.core.admission import Admission, Pool, Ticket, Turn, Why
from router.core.errors import Code, Refused
from router.core.model import Decision, Dispatcher
from router.fleet.view import View
from router.metrics import Instruments
from wire.records import AdmissionClass, Tenant

_CODES = {Why.SHARE: Code.RATE_LIMITED, Why.EXPIRED: Code.QUEUE_TIMEOUT}
"""The others say OVERLOADED."""


class Gate:
    def __init__(
        self, admission: Admission, dispatcher: Dispatcher, *, view: Callable[[], View], instruments: Instruments
    ) -> None:
        self._admission = admission
        self._dispatcher = dispatcher
        self._view = view
        self._instruments = instruments
        self._loop = asyncio.get_running_loop()
        self._calm_ms = 1000.0 * admission.limits.begin_s
        """An expected time to the first token below this cannot contain a wait that is above."""
        self._off = not self._calm_ms
        self._leaving = False
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._going: set[Pool] = set()
        """Pools of which one was released that is not counted yet."""
        self._stirred = False

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def lengths(self) -> dict[str, int]:
        """Waiting requests by base model."""
        found: dict[str, int] = {}
        for (model, _), length in self._admission.waiting().items():
            found[model] = found.get(model, 0) + length
        return found

    def calm(self, call: Call, decision: Decision, now: float) -> bool:
        """Whether there is nothing to ask: nobody waits, and no replica is under pressure. The way of most requests."""
        expected_ms = decision.expected_ttft_ms
        if expected_ms < self._calm_ms and not self._admission.queues:
            until = call.patience.first_token_until
            return until == inf or now + 1e-3 * expected_ms < until
        return self._off

    def free(self, call: Call, decision: Decision, now: float) -> bool:
        """Whether the request would go on at once as decided."""
        assert call.shape is not None
        pool = self._dispatcher.pool(decision.model or call.model, embedding=call.shape.embedding)
        return pool not in self._admission.queues and self._dispatcher.ahead_ms(pool, now) < self._calm_ms

    async def enter(self, call: Call, decision: Decision) -> bool:
        """True: go on as decided. False: waited, and the turn has come: decide anew. Raises Refused."""
        shape, fleet, now = call.shape, self._view().fleet, self._loop.time()
        assert shape is not None
        policy = fleet.models.get(call.model)
        class_ = policy.admission if policy else AdmissionClass.STANDARD
        if class_ is AdmissionClass.NONE or self._off:
            return True
        pool = self._dispatcher.pool(decision.model or call.model, embedding=shape.embedding)
        ahead_ms = self._dispatcher.ahead_ms(pool, now)
        tenant = fleet.tenants.get(call.tenant) or Tenant(tenant=call.tenant)
        ticket = self._admission.enter(
            pool,
            call.tenant,
            ahead_ms=ahead_ms,
            own_ms=max(0.0, decision.expected_ttft_ms - ahead_ms),
            deadline=shape.deadline,
            class_=class_,
            priority=shape.priority,
            weight=tenant.weight,
            tokens=self._dispatcher.work_tokens(decision, shape),
            now=now,
        )
        self.stir()  # it may have pushed another one out
        match ticket.turn:
            case Turn.ADMITTED:
                return True
            case Turn.REJECTED:
                self._dispatcher.note(shape.request_id, f"not sent: {ticket.reason}", now)
                raise self._refusal(ticket)
        if self._leaving:
            self._admission.leave(ticket)
            raise _leaving()
        self._dispatcher.note(
            shape.request_id,
            f"not sent yet: {1e-3 * ahead_ms:.1f} s of work is ahead in engines, so it waits in the router, "
            f"behind {ticket.before} others",
            now,
        )
        await self._turn(call, ticket)
        return False

    def stir(self) -> None:
        """Something happened that may let somebody go."""
        if self._admission.queues and not self._stirred:
            self._stirred = True
            self._loop.call_soon(self._release)

    def sweep(self, now: float) -> None:
        if self._admission.queues:
            for ticket in self._admission.expire(now):
                self._wake(ticket)
            self.stir()

    def end_all(self) -> None:
        """The router leaves and the limit is over: who still waits is sent elsewhere, and so is who comes."""
        self._leaving = True
        for ticket, future in list(self._waiting.items()):
            self._admission.leave(ticket)
            if not future.done():
                future.set_exception(_leaving())

    async def _turn(self, call: Call, ticket: Ticket) -> None:
        started = self._loop.time()
        future = self._waiting[ticket] = self._loop.create_future()
        try:
            await future
        finally:
            del self._waiting[ticket]
            self._admission.leave(ticket)
            call.queue_wait_s += self._loop.time() - started
            if ticket.turn is Turn.ADMITTED:
                # Runs after this step of the task, which sends the request or, if its client has left, ends it.
                self._loop.call_soon(self._gone_on, ticket.pool)
        if ticket.turn is Turn.REJECTED:
            self._dispatcher.note(call.request_id, f"not sent: {ticket.reason}", self._loop.time())
            raise self._refusal(ticket)

    def _release(self) -> None:
        self._stirred = False
        for ticket in self._admission.release(self._ahead_ms, self._loop.time()):
            if ticket.turn is Turn.ADMITTED:
                self._going.add(ticket.pool)
            self._wake(ticket)

    def _ahead_ms(self, pool: Pool) -> float:
        return inf if pool in self._going else self._dispatcher.ahead_ms(pool, self._loop.time())

    def _gone_on(self, pool: Pool) -> None:
        self._going.discard(pool)
        self.stir()

    def _wake(self, ticket: Ticket) -> None:
        future = self._waiting.get(ticket)  # None when its client left after it was pushed out
        if future is not None and not future.done():
            future.set_result(None)

    def _refusal(self, ticket: Ticket) -> Refused:
        model, _ = ticket.pool
        self._instruments.refused[model, ticket.why.value] += 1
        return Refused(
            _CODES.get(ticket.why, Code.OVERLOADED),
            f"`{model}` is under pressure and the request was not sent: {ticket.reason}.",
            retry_after_s=ticket.retry_after_s,
        )


def _leaving() -> Refused:
    return Refused(Code.DRAINING, "This router is shutting down and the request still waited.", retry_after_s=1.0)

"""Finds the replica for an attempt: asks the dispatcher, asks the gate whether the request may go there now, and waits
while a model is loading or can be woken.

Heeds what replicas asked for (Retry-After): one that is busy is left alone while there is any other. When several are
busy and none is left, the request is refused with the least of their times rather than sent where it is not wanted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Set as AbstractSet

from router.call import Call
from router.core.busy import Busy
from router.core.errors import Code, Refused
from router.core.model import Decision, Dispatcher, Verdict
from router.fleet.news import News
from router.fleet.wake import Waker
from router.gate import Gate

HOLD_STEP_S = 1.0
"""A held request looks again at least this often, though news usually wakes it sooner."""
AGAIN_STEP_S = 0.25
"""A broken stream that no other replica can take asks again this often: its own may be back."""


class Placement:
    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        gate: Gate,
        busy: Busy,
        news: News,
        waker: Waker,
        hold_limit_s: float,
        held_limit: int,
    ) -> None:
        self._dispatcher = dispatcher
        self._gate = gate
        self._busy = busy
        self._news = news
        self._waker = waker
        self._hold_limit_s = hold_limit_s
        self._held_limit = held_limit
        self._held: Counter[str] = Counter()
        """Requests that wait for a model to be ready."""
        self._leaving = False
        self._clock = asyncio.get_running_loop().time

    async def place(self, call: Call, tried: AbstractSet[str], *, until: float = 0.0) -> Decision:
        """A replica to send to, now. Waits, as long as allowed, for one that is loading or can be woken.

        With `until` a stream is to go on: it also waits for a replica to come back, be it the one that broke. Only a
        first attempt asks the gate: who was let in once does not queue again behind others."""
        started, limit = self._clock(), 0.0
        passed = again = bool(tried or until)
        while True:
            now = self._clock()
            decision = self.pick(call, tried, now)
            match decision.verdict:
                case Verdict.SEND:
                    if passed or self._gate.calm(call, decision, now):
                        return decision
                    if (admitted := await self._enter(call, decision, tried)) is not None:
                        return admitted
                    passed = True
                    continue
                case Verdict.WAKE:
                    self._waker.wake(decision.replica)
                case Verdict.HOLD:
                    pass
                case Verdict.MISFIT:
                    raise Refused(Code.INVALID_REQUEST, f"The model {decision.reason}.", param="model")
                case Verdict.UNKNOWN_MODEL | Verdict.NONE:
                    if not until:
                        raise self._nobody(call, decision, now)
                    assert isinstance(tried, set)
                    tried.clear()
            limit = limit or min(
                until or min(started + self._hold_limit_s, call.patience.first_token_until), call.patience.total_until
            )
            if now >= limit:
                raise self._nobody(call, decision, now)
            if not until and self._held[call.model] >= self._held_limit:
                raise self._too_many(decision)
            await self._hold(call, min(AGAIN_STEP_S if until else HOLD_STEP_S, limit - now))
            passed = again

    def pick(self, call: Call, tried: AbstractSet[str], now: float) -> Decision:
        """A busy replica is asked only where it is the only one, and so the only way to learn that it is free."""
        assert call.shape is not None
        busy = self._busy.replicas(call.model, now)
        decision = self._dispatcher.pick(call.shape, exclude=tried | set(busy) if busy else tried, now=now)
        if len(busy) == 1 and decision.verdict is not Verdict.SEND:
            return self._dispatcher.pick(call.shape, exclude=tried, now=now)
        return decision

    def end_all(self) -> None:
        """The router leaves and the limit is over: who still waits for a model is sent elsewhere."""
        self._leaving = True
        self._news.tell()

    def retry_after_s(self, call: Call) -> float:
        """Until the first busy replica may be asked again; 0 when none is busy."""
        return self._busy.least_s(call.model, self._clock())

    async def _enter(self, call: Call, decision: Decision, tried: AbstractSet[str]) -> Decision | None:
        """What to do at once; None after a wait: decide anew. Who would be refused may be answered by the substitute of
        its model, when that is under no pressure."""
        assert call.shape is not None
        try:
            return decision if await self._gate.enter(call, decision) else None
        except Refused:
            now = self._clock()
            instead = self._dispatcher.substitute(call.shape, exclude=tried, now=now)
            if instead is None or not self._gate.free(call, instead, now):
                raise
            return instead

    async def _hold(self, call: Call, limit_s: float) -> None:
        started = self._clock()
        self._held[call.model] += 1
        try:
            await self._news.wait(limit_s)
        finally:
            call.held_s += self._clock() - started
            self._held[call.model] -= 1
            if not self._held[call.model]:
                del self._held[call.model]
        if self._leaving:
            message = "This router is shutting down and the request still waited for its model."
            raise Refused(Code.DRAINING, message, retry_after_s=1.0)

    def _too_many(self, decision: Decision) -> Refused:
        message = f"{self._held_limit} requests wait for this model to be ready already (admission_queue)."
        return Refused(Code.OVERLOADED, message, retry_after_s=max(1.0, 1e-3 * decision.expected_ttft_ms))

    def _nobody(self, call: Call, decision: Decision, now: float) -> Refused:
        if len(self._busy.replicas(call.model, now)) > 1:
            message = "Every replica that could serve this model is busy and asked to be left alone for a while."
            return Refused(Code.ENGINE_BUSY, message, retry_after_s=self._busy.least_s(call.model, now))
        reason = decision.reason or "No replica of this model can serve it now."
        return Refused(Code.NO_REPLICA, reason, retry_after_s=max(1.0, decision.retry_after_s))

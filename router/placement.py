"""Finds the replica for an attempt: asks the dispatcher, and waits while a model is loading or can be woken.

Heeds what replicas asked for (Retry-After): one that is busy is left alone while there is any other. When several are
busy and none is left, the request is refused with the least of their times rather than sent where it is not wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Set as AbstractSet

from router.call import Call
from router.core.busy import Busy
from router.core.errors import Code, Refused
from router.core.model import Decision, Dispatcher, Verdict
from router.fleet.news import News
from router.fleet.wake import Waker

HOLD_STEP_S = 1.0
"""A held request looks again at least this often, though news usually wakes it sooner."""
AGAIN_STEP_S = 0.25
"""A broken stream that no other replica can take asks again this often: its own may be back."""


class Placement:
    def __init__(self, dispatcher: Dispatcher, *, busy: Busy, news: News, waker: Waker, hold_limit_s: float) -> None:
        self._dispatcher = dispatcher
        self._busy = busy
        self._news = news
        self._waker = waker
        self._hold_limit_s = hold_limit_s
        self._clock = asyncio.get_running_loop().time

    async def place(self, call: Call, tried: set[str], *, until: float = 0.0) -> Decision:
        """A replica to send to, now. Waits, as long as allowed, for one that is loading or can be woken.

        With `until` a stream is to go on: it also waits for a replica to come back, be it the one that broke."""
        started = self._clock()
        limit = until or min(started + self._hold_limit_s, call.patience.first_token_until)
        limit = min(limit, call.patience.total_until)
        while True:
            now = self._clock()
            decision = self.pick(call, tried, now)
            match decision.verdict:
                case Verdict.SEND:
                    call.held_s += now - started
                    return decision
                case Verdict.WAKE:
                    self._waker.wake(decision.replica)
                case Verdict.HOLD:
                    pass
                case Verdict.UNKNOWN_MODEL | Verdict.NONE:
                    if not until:
                        raise self._nobody(call, decision, now)
                    tried.clear()
            if now >= limit:
                raise self._nobody(call, decision, now)
            await self._news.wait(min(AGAIN_STEP_S if until else HOLD_STEP_S, limit - now))

    def pick(self, call: Call, tried: AbstractSet[str], now: float) -> Decision:
        """A busy replica is asked only where it is the only one, and so the only way to learn that it is free."""
        assert call.shape is not None
        busy = self._busy.replicas(call.model, now)
        decision = self._dispatcher.pick(call.shape, exclude=tried | set(busy) if busy else tried, now=now)
        if len(busy) == 1 and decision.verdict is not Verdict.SEND:
            return self._dispatcher.pick(call.shape, exclude=tried, now=now)
        return decision

    def retry_after_s(self, call: Call) -> float:
        """Until the first busy replica may be asked again; 0 when none is busy."""
        return self._busy.least_s(call.model, self._clock())

    def _nobody(self, call: Call, decision: Decision, now: float) -> Refused:
        if len(self._busy.replicas(call.model, now)) > 1:
            message = "Every replica that could serve this model is busy and asked to be left alone for a while."
            return Refused(Code.ENGINE_BUSY, message, retry_after_s=self._busy.least_s(call.model, now))
        reason = decision.reason or "No replica of this model can serve it now."
        return Refused(Code.NO_REPLICA, reason, retry_after_s=max(1.0, decision.retry_after_s))

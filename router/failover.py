"""Serves an admitted request: place it on a replica, relay, and go elsewhere while that can help.

Before the client has a byte, a failed attempt is repeated on another replica, under the retry budget. After that the
stream is ended honestly, with one error event and no `[DONE]`: a truncated answer must never look complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.answer import Answer, broken_answer
from router.attempt import Attempts, Job
from router.call import Call
from router.core.asked import cut_for, prepare
from router.core.errors import Code, Refused, row
from router.core.model import Decision, Dispatcher, Verdict
from router.core.retry import RetryBudget
from router.downstream.stream import ClientStream
from router.fleet.news import News
from router.fleet.view import View
from router.fleet.wake import Waker
from router.relay import Relay
from router.settings import RouterSettings
from wire.records import ModelPolicy

HOLD_STEP_S = 1.0
"""A held request looks again at least this often, though news usually wakes it sooner."""


class Failover:
    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        attempts: Attempts,
        view: Callable[[], View],
        news: News,
        waker: Waker,
        budget: RetryBudget,
        settings: RouterSettings,
    ) -> None:
        self._dispatcher = dispatcher
        self._attempts = attempts
        self._view = view
        self._news = news
        self._waker = waker
        self._budget = budget
        self._settings = settings
        self._clock = asyncio.get_running_loop().time

    async def serve(self, call: Call, client: ClientStream) -> Answer:
        """Return how the answer ends; its last bytes are not sent yet. Raises Refused when nobody could serve it."""
        self._budget.deposit(self._clock())
        tried: set[str] = set()
        failed: Refused | None = None
        while True:
            try:
                decision = await self._place(call, tried)
            except Refused as refused:
                raise failed or refused from None  # why the tried ones failed says more than that none is left
            relay = await self._attempts.run(call, client, self._job(call, decision, retry=bool(tried)))
            code = relay.attempt.code
            if code is Code.OK or code is Code.ENGINE_REJECTED:
                return self._answer(relay)
            if client.started:
                return broken_answer(code, relay.attempt.detail)
            failed = refusal_of(relay)
            tried.add(decision.replica)
            if not row(code).retry or len(tried) >= self._settings.attempts_limit:
                raise failed
            if not self._budget.withdraw(self._clock()):
                raise failed

    async def _place(self, call: Call, tried: set[str]) -> Decision:
        """A replica to send to, now. Waits, as long as allowed, for one that is loading or can be woken."""
        assert call.shape is not None
        started = self._clock()
        while True:
            now = self._clock()
            decision = self._dispatcher.pick(call.shape, exclude=tried, now=now)
            match decision.verdict:
                case Verdict.SEND:
                    call.held_s += now - started
                    return decision
                case Verdict.UNKNOWN_MODEL | Verdict.NONE:
                    raise self._nobody(decision)
                case Verdict.WAKE:
                    self._waker.wake(decision.replica)
                case Verdict.HOLD:
                    pass
            left_s = self._settings.hold_limit_s - (now - started)
            if left_s <= 0:
                raise self._nobody(decision)
            await self._news.wait(min(HOLD_STEP_S, left_s))

    def _nobody(self, decision: Decision) -> Refused:
        reason = decision.reason or "No replica of this model can serve it now."
        return Refused(Code.NO_REPLICA, reason, retry_after_s=max(1.0, decision.retry_after_s))

    def _job(self, call: Call, decision: Decision, *, retry: bool) -> Job:
        asked = call.asked
        assert asked is not None
        fleet = self._view().fleet
        replica = fleet.replicas.get(decision.replica)
        if replica is None:
            raise Refused(Code.NO_REPLICA, "The replica left while it was chosen.", retry_after_s=1.0)
        return Job(
            decision=decision,
            replica=replica,
            policy=fleet.models.get(call.model) or ModelPolicy(model=call.model),
            kind="retry" if retry else "first",
            path=call.path,
            body=prepare(asked, token_ids=False),
            editor=cut_for(asked, token_ids=False),
            choices=asked.choices,
        )

    def _answer(self, relay: Relay) -> Answer:
        if relay.answer or not relay.tail:
            return Answer(status=relay.attempt.status, data=relay.answer, code=relay.attempt.code)
        return Answer(status=200, data=relay.tail, code=Code.OK)


def refusal_of(relay: Relay) -> Refused:
    """What the client is told when this attempt was the last."""
    attempt = relay.attempt
    return Refused(
        attempt.code,
        f"No replica could answer: {attempt.detail or attempt.code}.",
        retry_after_s=relay.retry_after_s or (1.0 if row(attempt.code).status == 503 else 0.0),
    )

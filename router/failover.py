"""Serves an admitted request: place it on a replica, relay, and go elsewhere while that can help.

Before the client has a byte, a failed attempt is repeated on another replica, under the retry budget. After that the
stream is continued from what the client has (resume.py); what cannot be continued ends honestly, with one error event
and no `[DONE]`: a truncated answer must never look complete.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import lru_cache
from math import inf
from random import Random

from msgspec.structs import replace

from router.answer import Answer, broken_answer
from router.attempt import Attempts
from router.call import Call, served_model
from router.core.asked import Asked, renamed
from router.core.continuation import Plan, Way
from router.core.errors import Code, Refused, row
from router.core.model import Decision, Shape
from router.core.obstacles import needs_seed
from router.core.retry import RetryBudget
from router.downstream.stream import Outlet
from router.fleet.view import View
from router.job import Job
from router.placement import Placement
from router.race import Hedging, Race
from router.relay import Relay
from router.resume import Story, WholeLeg
from router.settings import RouterSettings
from router.settling import Settling
from wire.records import ModelPolicy, Replica

log = logging.getLogger(__name__)

_ANSWERS = (Code.OK, Code.ENGINE_REJECTED)
_WHOLE = WholeLeg()
"""It keeps nothing: one for all."""
DIVERGED_LIMIT = 2
"""Continuations that contradict what the client has; engines that disagree twice will not agree a third time."""
IMPATIENT_LIMIT = 2
"""Legs cut for the client's own limit between tokens, of one request: each costs another engine the prompt again."""


class Failover:
    def __init__(
        self,
        *,
        attempts: Attempts,
        settling: Settling,
        view: Callable[[], View],
        placement: Placement,
        hedging: Hedging,
        budget: RetryBudget,
        settings: RouterSettings,
        rng: Random,
    ) -> None:
        self._placement = placement
        self._hedging = hedging
        self._attempts = attempts
        self._settling = settling
        self._goes_on = settling.movable  # bound once: open streams share it
        self._view = view
        self._budget = budget
        self._settings = settings
        self._rng = rng
        self._thinking: set[str] = set()
        """Models that were seen to think before they answer."""
        self._clock = asyncio.get_running_loop().time

    async def serve(self, call: Call, client: Outlet) -> Answer:
        """Return how the answer ends; its last bytes are not sent yet. Raises Refused when nobody could serve it."""
        self._budget.deposit(self._clock())
        tried: AbstractSet[str] = frozenset()  # not one more set for each open stream
        busy = 0
        failed: Refused | None = None
        while True:
            try:
                decision = await self._placement.place(call, tried)
            except Refused as refused:
                raise failed or refused from None  # why the tried ones failed says more than that none is left
            job = self._first_job(call, decision, kind="retry" if tried else "first")
            race = self._race(call, client, job, tried)
            try:
                relay = await (race.run() if race else self._attempts.run(call, client, job))
                job = race.job if race else job
                if client.started and relay.attempt.code is not Code.OK:
                    if job.story is None:  # an engine that streams where nobody asked it to
                        return broken_answer(relay.attempt.code, relay.attempt.detail)
                    return await self._continue(call, client, job.story, relay)
            finally:
                told = race.job.story if race else job.story
                self._charge(call, told)
                if told is not None and call.model not in self._thinking and told.thought:
                    self._thinking.add(call.model)
            if relay.attempt.code in _ANSWERS:
                return _whole(relay) if job.story is None or relay.answer else _ended(job.story, relay.tail)
            failed = refusal_of(relay, busy_s=self._placement.retry_after_s(call))
            tried |= race.asked if race else {decision.replica}
            busy += relay.attempt.code is Code.ENGINE_BUSY
            counted = len(tried) - min(busy, self._settings.attempts_limit)  # who is busy says so at once, at no cost
            if self._clock() > call.patience.first_token_until or not self._may_retry(relay.attempt.code, counted):
                raise failed

    async def _continue(self, call: Call, client: Outlet, story: Story, broken: Relay) -> Answer:
        """Go on with a stream that broke, on any replica that can, until it ends or nothing helps."""
        shape = _bound_to_its_model(call)
        tried = {broken.attempt.replica.replica}
        diverged = impatient = 0
        until = self._clock() + self._settings.resume_limit_s
        while True:
            attempt = broken.attempt
            impatient += attempt.impatient
            given_up = self._clock() > until or diverged >= DIVERGED_LIMIT or impatient > IMPATIENT_LIMIT
            if given_up or not (attempt.code is Code.OK or row(attempt.code).retry):
                return broken_answer(attempt.code, attempt.detail)
            plan = story.plan(ids_supported=True)
            if plan.way is Way.FINISH:
                return _ended(story, broken.tail)
            if plan.way is Way.REFUSE and not story.unsettled():
                return broken_answer(attempt.code, f"{attempt.detail}; it cannot be continued {plan.reason}")
            shape.delivered_tokens = delivered = story.transcript.tokens
            try:
                decision = await self._placement.place(call, tried, until=until)
                replica = self._replica(decision)
            except Refused:
                return broken_answer(attempt.code, f"{attempt.detail}; no replica could go on with it")
            await self._settling.settle(story, replica)
            plan = story.plan(ids_supported=replica.token_ids)
            if plan.way is Way.REFUSE:
                if replica.token_ids:
                    return broken_answer(attempt.code, f"{attempt.detail}; it cannot be continued {plan.reason}")
                tried.add(decision.replica)
                continue
            log.info("request %s goes on by %s on %s: %s", call.request_id, plan.way, decision.replica, attempt.detail)
            broken = await self._attempts.run(call, client, self._next_job(call, decision, replica, plan, story))
            if broken.attempt.code is Code.OK and story.fold().finished:
                return _ended(story, broken.tail)
            if broken.attempt.code is Code.ENGINE_REJECTED:
                return broken_answer(Code.ENGINE_BROKE, f"the continuation was rejected: {broken.attempt.detail}")
            diverged += broken.attempt.code is Code.DIVERGED
            if story.fold().tokens > delivered:
                tried, until = set(), self._clock() + self._settings.resume_limit_s
            if broken.attempt.code is Code.OK:  # choices with other limits left wait for a leg of their own
                client.write(broken.tail)
            else:
                tried.add(decision.replica)

    def _may_retry(self, code: Code, tried: int) -> bool:
        if code is Code.MOVED:  # a drain is no failure, and no storm of retries can come of it
            return True
        return row(code).retry and tried < self._settings.attempts_limit and self._budget.withdraw(self._clock())

    def _race(self, call: Call, client: Outlet, job: Job, tried: AbstractSet[str]) -> Race | None:
        """Where policy allows a hedge, and the request is not one that may wait."""
        assert call.shape is not None
        if not job.policy.hedge or call.shape.priority < 0:
            return None
        self._hedging.budget.deposit()

        def second(decision: Decision) -> Job:
            return self._first_job(call, decision, kind="hedge")

        return Race(self._hedging, call, client, first=job, tried=tried, second=second)

    def _first_job(self, call: Call, decision: Decision, *, kind: str) -> Job:
        asked = call.asked
        assert asked is not None
        assert call.shape is not None
        if decision.model:
            asked = renamed(asked, decision.model)
        replica = self._replica(decision)
        story = None
        if asked.streams:
            story = Story(asked, token_ids=replica.token_ids, seed=self._seed(call, asked))
        return Job(
            decision=decision,
            replica=replica,
            policy=self._policy(call),
            patience=call.patience,
            kind=kind,
            path=call.path,
            body=story.sent if story else asked.sent,
            editor=story.first_leg() if story else _WHOLE,
            story=story,
            choices=call.shape.choices,
            goes_on=self._goes_on,
        )

    def _next_job(self, call: Call, decision: Decision, replica: Replica, plan: Plan, story: Story) -> Job:
        return Job(
            decision=decision,
            replica=replica,
            policy=self._policy(call),
            patience=replace(call.patience, first_token_until=inf),  # the client has its first token
            kind="resume",
            path=plan.endpoint,
            body=lambda: plan.body,
            editor=story.next_leg(plan),
            story=story,
            choices=len(plan.choices),
            goes_on=self._goes_on,
        )

    def _seed(self, call: Call, asked: Asked) -> int | None:
        """A seed of ours, where only a replay could continue the stream and chance would forbid it."""
        return self._rng.getrandbits(31) if needs_seed(asked, thinks=call.model in self._thinking) else None

    def _charge(self, call: Call, story: Story | None) -> None:
        """The prompt and each delivered token once, over all attempts; also of a request whose client left."""
        if not call.attempts:
            return
        last = call.attempts[-1]
        if len(call.attempts) == 1 and last.usage is not None:
            call.usage = last.usage
        elif story is not None and call.first_token:
            call.usage = story.charged(prompt_estimate=last.decision.prompt_tokens)
        else:
            call.usage = last.usage

    def _replica(self, decision: Decision) -> Replica:
        replica = self._view().fleet.replicas.get(decision.replica)
        if replica is None:
            raise Refused(Code.NO_REPLICA, "The replica left while it was chosen.", retry_after_s=1.0)
        return replica

    def _policy(self, call: Call) -> ModelPolicy:
        return self._view().fleet.models.get(call.model) or _usual_policy(call.model)


@lru_cache(1024)
def _usual_policy(model: str) -> ModelPolicy:
    """Of models that nobody wrote one for: one for all their requests."""
    return ModelPolicy(model=model)


def _bound_to_its_model(call: Call) -> Shape:
    """What has begun in one model cannot go on in another."""
    assert call.shape is not None
    if instead := served_model(call):
        call.shape.model, call.shape.fallback_allowed = instead, False
    return call.shape


def _ended(story: Story, tail: bytes) -> Answer:
    return Answer(status=200, data=story.close(tail), code=Code.OK)


def _whole(relay: Relay) -> Answer:
    """A body that passes as it is: the answer, or the engine's word on what is wrong with the request."""
    return Answer(status=relay.attempt.status, data=relay.answer, code=relay.attempt.code, message=relay.attempt.detail)


def refusal_of(relay: Relay, *, busy_s: float) -> Refused:
    """What the client is told when this attempt was the last; `busy_s` until any busy replica may be asked again."""
    attempt = relay.attempt
    retry_after_s = relay.retry_after_s or (1.0 if row(attempt.code).status == 503 else 0.0)
    if attempt.code is Code.ENGINE_BUSY and busy_s:
        retry_after_s = min(retry_after_s, busy_s)
    return Refused(
        attempt.code,
        f"No replica could answer: {attempt.detail or attempt.code}.",
        retry_after_s=retry_after_s,
    )

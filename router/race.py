"""One answer from two replicas: the second is asked when the first is late, and the first token wins.

What is late and what is worth a second prefill is decided in core/hedge.py; the sweep asks. The one that wins stops the
other at that very moment, before it writes a byte, so the client can only ever see one of them. Until then each is an
attempt like any other: counted, charged to its replica, ended by whatever ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet

from router.attempt import Attempts
from router.call import Call
from router.core import hedge
from router.core.errors import Code
from router.core.hedge import HedgeBudget
from router.core.model import Decision, Dispatcher
from router.downstream.stream import Outlet
from router.fleet.view import View
from router.job import Job
from router.placement import Placement
from router.relay import Relay

_ANSWERS = (Code.OK, Code.ENGINE_REJECTED)
"""Of an attempt that streamed nothing: the client gets this, be it an error of its own."""


class Hedging:
    """What all races share."""

    def __init__(
        self,
        *,
        attempts: Attempts,
        dispatcher: Dispatcher,
        placement: Placement,
        view: Callable[[], View],
        budget: HedgeBudget,
    ) -> None:
        self.attempts = attempts
        self.placement = placement
        self.budget = budget
        self.dispatcher = dispatcher
        self._view = view

    def prefill_load(self, model: str, late: Collection[str], now: float) -> float:
        """Of the others: the late one has our own prompt to work on."""
        fleet = self._view().fleet
        policy = fleet.models.get(model)
        base = policy.adapter_of if policy and policy.adapter_of else model
        names = [name for name, replica in fleet.replicas.items() if replica.model == base and name not in late]
        return hedge.prefill_load(self.dispatcher.heard(name, now) for name in names)

    def knows(self, replica: str) -> bool:
        return replica in self._view().fleet.replicas


class Race:
    """One request whose first token may be hedged."""

    def __init__(
        self,
        hedging: Hedging,
        call: Call,
        client: Outlet,
        *,
        first: Job,
        tried: AbstractSet[str],
        second: Callable[[Decision], Job],
    ) -> None:
        self.job = first
        """Of the attempt that answers; until that is known, of the first, and in the end of the last to fail."""
        self.asked = {first.replica.replica}
        self._hedging = hedging
        self._call = call
        self._client = client
        self._tried = tried
        self._second = second
        self._whole = first.story is None
        self._first_decode_ms = self._decode_ms(first.decision)  # as of now: being late makes a replica look slower
        self._look_ms = hedge.late_ms(first.decision.expected_p90_ms, decode_ms=self._first_decode_ms)
        self._group = asyncio.TaskGroup()
        self._entrants: list[Entrant] = []
        self._winner: Entrant | None = None
        self._relay: Relay | None = None

    async def run(self) -> Relay:
        """Return the relay of the attempt that answered, or of the last to fail. Cancelled when the client leaves."""
        async with self._group:
            self._enter(self.job)
        assert self._relay is not None
        return self._relay

    def look(self, relay: Relay, now: float) -> None:
        """Ask a second replica if the first is late and that is worth it. Called by the sweep."""
        age_ms = 1000.0 * (now - relay.quiet_since)
        over = self._winner is not None or self._client.gone or relay.done.done()
        if over or len(self._entrants) > 1 or age_ms <= self._look_ms:
            return
        self._look_ms = hedge.AGAIN * age_ms
        hedging = self._hedging
        if hedging.budget.balance < 1.0:
            return
        other = hedging.placement.pick(self._call, self._tried | self.asked, now)
        worth = hedge.worth(
            self.job.decision,
            other,
            age_ms=age_ms,
            prefill_load=hedging.prefill_load(self._call.model, self.asked, now),
            decode_ms=(self._first_decode_ms, self._decode_ms(other)),
        )
        if worth and hedging.knows(other.replica) and hedging.budget.withdraw():
            self.asked.add(other.replica)
            self._enter(self._second(other))

    def won(self, entrant: Entrant) -> None:
        """It answers. The other must not write a byte from now on."""
        if self._winner is not None:
            return
        self._winner, self.job = entrant, entrant.job
        for other in self._entrants:
            if other is not entrant:
                other.stop()
        # Of a call the last attempt is the one that answers.
        self._call.attempts.sort(key=lambda attempt: entrant.relay is not None and attempt is entrant.relay.attempt)

    def ended(self, entrant: Entrant, relay: Relay) -> None:
        if self._winner is None and relay.attempt.code in _ANSWERS:
            self.won(entrant)
        if self._winner in (None, entrant):
            self.job, self._relay = entrant.job, relay

    async def attempt(self, job: Job) -> Relay:
        return await self._hedging.attempts.run(self._call, self._client, job)

    def _enter(self, job: Job) -> None:
        entrant = Entrant(self, job)
        self._entrants.append(entrant)
        entrant.task = self._group.create_task(entrant.run())

    def _decode_ms(self, decision: Decision) -> float:
        assert self._call.shape is not None
        return self._hedging.dispatcher.decode_ms(decision, self._call.shape) if self._whole else 0.0


class Entrant:
    """One of the attempts in a race; its job tells it what happens (attempt.Rival)."""

    def __init__(self, race: Race, job: Job) -> None:
        self.job = job
        self.relay: Relay | None = None
        self.task: asyncio.Task[None] | None = None
        self._race = race
        job.rival = self

    async def run(self) -> None:
        self._race.ended(self, await self._race.attempt(self.job))

    def entered(self, relay: Relay) -> None:
        self.relay = relay

    def leads(self) -> None:
        self._race.won(self)

    def look(self, relay: Relay, now: float) -> None:
        self._race.look(relay, now)

    def stop(self) -> None:
        """At once, also while it still connects."""
        if self.relay is not None:
            self.relay.stop(Code.OUTRUN, "another replica answered first")
        if self.task is not None:
            self.task.cancel()

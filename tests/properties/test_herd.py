"""Eight routers over one fleet that is nearly full: what looks empty to one must not be stampeded by all."""

from __future__ import annotations

import random

import pytest

from router.core.constants import Constants
from router.core.dispatch import CoreDispatcher
from router.core.model import Ending, Fleet, Flight, Verdict
from tests.router.core.fleets import fleet, load, replica, report, shape
from wire.records import ModelState

ROUTERS = 8
RATE = 400.0
"""Requests a second: 16 replicas are 90 % busy with them."""
PREFILL_S = 0.036
"""Of each prompt: a thousand tokens on the prior's device."""
HAPPENS_S, ENDS_S, REPORT_S = 2.0, 6.0, 0.25
NAMES = [f"r{n}" for n in range(16)]


class Engine:
    """First come, first served, one prompt at a time: the queue is all that matters here."""

    def __init__(self) -> None:
        self.queue: list[tuple[int, Flight]] = []
        self.free_at = 0.0

    def advance(self, now: float) -> None:
        while self.queue and self.free_at + PREFILL_S <= now:
            self.free_at = max(self.free_at, 0.0) + PREFILL_S
            _, flight = self.queue.pop(0)
            flight.first_token(self.free_at)
            flight.end(Ending.COMPLETE, self.free_at)
        if not self.queue:
            self.free_at = max(self.free_at, now)


class Crowd:
    """Routers, engines and reports; `event` happens at two seconds to the replica `watched` or to the routers."""

    def __init__(self, seed: int, event: str, *, reports: bool, constants: Constants) -> None:
        self.event, self.reports = event, reports
        self.happened = False
        self.rng = random.Random(seed)
        self.watched = "new" if event in ("join", "wake") else "r0"
        self.engines = {name: Engine() for name in dict.fromkeys([*NAMES, self.watched])}
        self._constants, self._seed, self._born = constants, 100 * seed, 0
        self.routers = [self._router(0.0) for _ in range(ROUTERS)]
        self._sequence = 0
        self._stale: dict[int, int] = {}

    def run(self) -> float:
        """By how many requests the queue of the watched replica ever exceeds the mean of the others."""
        now, next_report, worst = 0.0, 0.0, float("-inf")
        while now < ENDS_S:
            now += self.rng.expovariate(RATE)
            for engine in self.engines.values():
                engine.advance(now)
            if not self.happened and now >= HAPPENS_S:
                self.happened = True
                self._happen(now)
            if self.reports and now >= next_report:
                next_report = now + REPORT_S
                self._report(now)
            self._send(now)
            if self.happened:
                others = [len(engine.queue) for name, engine in self.engines.items() if name != self.watched]
                worst = max(worst, len(self.engines[self.watched].queue) - sum(others) / len(others))
        return worst

    def _fleet(self) -> Fleet:
        members = [replica(name) for name in NAMES]
        if self.watched == "new" and self.happened:
            members.append(replica("new"))
        elif self.event == "wake":
            members.append(replica("new", ModelState.SLEEPING))
        return fleet(*members, routers=ROUTERS)

    def _router(self, now: float) -> CoreDispatcher:
        self._born += 1
        core = CoreDispatcher(rng=random.Random(self._seed + self._born), constants=self._constants)
        core.apply(self._fleet(), now)
        return core

    def _happen(self, now: float) -> None:
        if self.event == "all routers restart":
            self.routers = [self._router(now) for _ in range(ROUTERS)]
        elif self.event == "a router restarts":
            self.routers[0] = self._router(now)
        else:
            for core in self.routers:
                core.apply(self._fleet(), now)

    def _report(self, now: float) -> None:
        self._sequence += 1
        names = [*NAMES, "new"] if self.watched == "new" and self.happened else NAMES
        for number, core in enumerate(self.routers):
            for name in names:
                waiting = len(self.engines[name].queue)
                seen = core.sent(f"n-{name}").get(name, 0)
                if self.event == "stale report" and self.happened and name == self.watched:
                    waiting, seen = 0, self._stale.setdefault(number, seen)
                figures = load(name, waiting=waiting, waiting_uncached_tokens=1000.0 * waiting, seen=seen)
                core.report(report(figures, sequence=self._sequence), now)

    def _send(self, now: float) -> None:
        which = self.rng.randrange(ROUTERS)
        asked = shape(prompt=self.rng.randbytes(4000))
        decision = self.routers[which].pick(asked, now=now)
        assert Verdict.SEND is decision.verdict
        flight = self.routers[which].begin(decision, asked, now)
        engine = self.engines[decision.replica]
        if not engine.queue:
            engine.free_at = now
        engine.queue.append((which, flight))


def excess(seed: int, event: str, *, reports: bool, constants: Constants | None = None) -> float:
    return Crowd(seed, event, reports=reports, constants=constants or Constants()).run()


NEWCOMER = 3.0
"""A newcomer looks ten times slower than it is at first, so that it takes its share only as the others' queues ask for
it. One request for a tie that is drawn, and two of those that arrive at once at routers that do not see each other."""
BLIND = 12.0
"""Between two reports of a quarter second a hundred requests arrive, six a replica, and each router sees its own eighth
of them: it takes the others to do as it does, so its guess of six is wrong by up to about six. Twice that, because a
replica that looks empty by so much is filled by so much."""


@pytest.mark.parametrize(("event", "reports"), [("join", True), ("join", False), ("wake", True)])
def test_a_replica_that_joins_or_wakes_gets_no_longer_a_queue_than_the_others(event: str, reports: bool) -> None:
    assert excess(0, event, reports=reports) <= NEWCOMER


@pytest.mark.parametrize("event", ["a router restarts", "all routers restart", "stale report"])
def test_no_replica_is_stampeded_when_routers_or_reports_forget_what_was_sent(event: str) -> None:
    assert excess(0, event, reports=True) <= BLIND


def test_without_a_slow_start_a_newcomer_would_be_stampeded() -> None:
    assert excess(0, "join", reports=True, constants=Constants(slow_start_s=0.001)) > NEWCOMER

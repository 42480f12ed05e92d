"""Eight routers over one fleet, and one replica joins, empty: they must not all send everything there."""

from __future__ import annotations

import random

import pytest

from router.core.constants import Constants
from router.core.dispatch import CoreDispatcher
from router.core.model import Ending, Flight, Verdict
from tests.router.core.fleets import fleet, load, replica, report, shape

ROUTERS = 8
RATE = 400.0
PREFILL_S = 0.036
"""Of each prompt: a thousand tokens on the prior's device."""


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


def queue_of_the_newcomer(seed: int, *, reports: bool, constants: Constants) -> float:
    """By how many requests the queue of the replica that joined ever exceeds the mean of the others."""
    names = [f"r{n}" for n in range(16)]
    rng = random.Random(seed)
    routers = [CoreDispatcher(rng=random.Random(100 * seed + n), constants=constants) for n in range(ROUTERS)]
    engines = {name: Engine() for name in [*names, "new"]}
    for core in routers:
        core.apply(fleet(*(replica(name) for name in names), routers=ROUTERS), 0.0)
    now, joined, sequence = 0.0, False, 0
    next_report = 0.0
    worst = float("-inf")
    while now < 6.0:
        now += rng.expovariate(RATE)
        for engine in engines.values():
            engine.advance(now)
        if not joined and now >= 2.0:
            joined = True
            for core in routers:
                core.apply(fleet(*(replica(name) for name in [*names, "new"]), routers=ROUTERS), now)
        if reports and now >= next_report:
            next_report, sequence = now + 0.25, sequence + 1
            for core in routers:
                for name in core._belief.replicas:
                    waiting = len(engines[name].queue)
                    sent = core.sent(f"n-{name}").get(name, 0)
                    figures = load(name, waiting=waiting, waiting_uncached_tokens=1000.0 * waiting, seen=sent)
                    core.report(report(figures, sequence=sequence), now)
        which = rng.randrange(ROUTERS)
        asked = shape(prompt=rng.randbytes(4000))
        decision = routers[which].pick(asked, now=now)
        assert Verdict.SEND is decision.verdict
        flight = routers[which].begin(decision, asked, now)
        engine = engines[decision.replica]
        if not engine.queue:
            engine.free_at = now
        engine.queue.append((which, flight))
        if joined:
            mean = sum(len(engines[name].queue) for name in names) / len(names)
            worst = max(worst, len(engines["new"].queue) - mean)
    return worst


@pytest.mark.parametrize("reports", [True, False])
def test_a_replica_that_joins_gets_no_longer_a_queue_than_the_others(reports: bool) -> None:
    """Each router sends in turns to what looks best to it. A newcomer looks ten times slower than it is at first, so
    that it takes its share only as the others' queues ask for it: 2 allows for ties and for what eight routers cannot
    know of each other within a report's interval."""
    for seed in range(2):
        assert queue_of_the_newcomer(seed, reports=reports, constants=Constants()) <= 2.0


def test_without_a_slow_start_it_would_be_stampeded() -> None:
    assert queue_of_the_newcomer(0, reports=True, constants=Constants(slow_start_s=0.001)) > 5.0

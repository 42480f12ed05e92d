"""Of very many replicas only the promising ones are scored: what that costs beside scoring them all."""

from __future__ import annotations

import random
from collections import deque

from router.core.affinity import chain
from router.core.ask import Ask
from router.core.constants import Constants
from router.core.dispatch import CoreDispatcher
from router.core.group import Group
from router.core.model import Ending, Flight, Shape
from router.core.pick import candidate_rows
from router.core.score import scan
from tests.router.core.fleets import dispatcher, load, replica, report, shape
from wire.records import ModelState

REPLICAS = 1000
DEVICES = ("h100-80g", "h100-80g", "a100-80g", "l4")
STATES = (ModelState.READY,) * 8 + (ModelState.SLEEPING, ModelState.LOADING)


def prompts(rng: random.Random) -> list[bytes]:
    """Four system prompts, sessions of up to eight turns below each, some long; and some that nobody shares."""
    systems = [rng.randbytes(size) for size in (512, 2048, 4096, 16_384)]
    found = []
    for _ in range(60):
        text = rng.choice(systems)
        for _ in range(rng.randrange(1, 8)):
            text += rng.randbytes(rng.choice((200, 800, 3000)))
            found.append(text)
    return found + [rng.randbytes(rng.choice((300, 2000, 40_000))) for _ in range(40)]


def crowd(seed: int, constants: Constants) -> tuple[CoreDispatcher, Group, list[bytes]]:
    """A fleet of mixed devices and states with drawn loads; some nodes are slow, some failed lately."""
    rng = random.Random(seed)
    core = dispatcher(
        *(replica(f"r{n}", rng.choice(STATES), device_class=rng.choice(DEVICES)) for n in range(REPLICAS)),
        constants=constants,
        seed=seed,
    )
    group = core._belief.groups["m", False]
    busy = rng.choice((0.5, 3.0, 10.0))
    for n, state in enumerate(group.present):
        figures = {
            "state": state.record.state,
            "running": int(rng.expovariate(0.1)),
            "waiting": int(rng.expovariate(1.0 / busy)),
            "waiting_uncached_tokens": rng.expovariate(1.0 / (busy * 800.0)),
            "kv_use": rng.random(),
            "kv_capacity_tokens": 400_000,
            "load_remaining_s": rng.uniform(0.5, 20.0),
        }
        if rng.random() < 0.1:
            state.node.slowness.learn(rng.uniform(2.0, 8.0), 0.0)
        if rng.random() < 0.03:
            state.health.outcome(Ending.FAILED, 0.0, mean_success=1.0)
        core.report(report(load(f"r{n}", **figures)), 0.0)
    texts = prompts(rng)
    for _ in range(1500):
        group.index.insert(rng.randrange(REPLICAS), chain("m", rng.choice(texts)))
    return core, group, texts


def compared(seed: int, constants: Constants, *, decisions: int = 100) -> list[tuple[float, float]]:
    """For each of some requests the least score of all replicas, and that of those which are looked at."""
    core, group, texts = crowd(seed, constants)
    rng = random.Random(seed)
    found = []
    for _ in range(decisions):
        prompt = rng.choice(texts) + rng.randbytes(rng.choice((0, 300, 2000)))
        ask: Ask = core._ask(group, Shape(request_id="r", model="m", prompt=prompt, max_tokens=200), 0.0)
        match = group.index.match(chain("m", prompt))
        every = scan(group.columns, ask, group.index.matched(match, range(REPLICAS)), constants)
        rows, _ = candidate_rows(group, ask, match, rng)
        found.append((min(every), min(every[row] for row in rows)))
    return found


def test_the_best_of_a_thousand_is_nearly_always_among_those_that_are_looked_at() -> None:
    """Measured over these seeds: as good in 99.0 %, 0.2 ms worse on average of 207 ms, and 18 ms where it was worse."""
    constants = Constants()
    found = [pair for seed in range(3) for pair in compared(seed, constants)]
    best_ms = sum(best for best, _ in found)
    as_good = [few <= best + max(constants.tie_ms, constants.tie_fraction * best) for best, few in found]
    assert sum(as_good) >= 0.97 * len(found)
    assert sum(few for _, few in found) <= 1.01 * best_ms


def test_with_few_holders_and_few_with_little_to_do_the_best_is_missed_more_often() -> None:
    narrow = Constants(holders=8, shortlist=8, strangers=4, scored=20)
    missed = {constants: sum(few > best for best, few in compared(0, constants)) for constants in (Constants(), narrow)}
    assert missed[Constants()] < missed[narrow]


def test_without_reports_every_row_of_a_large_group_is_made_anew_while_requests_come() -> None:
    core = dispatcher(*(replica(f"r{n}") for n in range(400)))
    group = core._belief.groups["m", False]
    begun, started = deque[Flight](), deque[Flight]()
    for n in range(600):
        now, asked = 0.005 * n, shape(prompt=n.to_bytes(2, "big") * 500)
        begun.append(core.begin(core.pick(asked, now=now), asked, now))
        if len(begun) > 30:
            started.append(begun.popleft())
            started[-1].first_token(now)
        if len(started) > 60:
            started.popleft().end(Ending.COMPLETE, now)
    assert min(group._ages.values()) > 1.0

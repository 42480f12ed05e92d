"""The laws of the rule: what must hold for any fleet, any history, any request."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.core.ask import Ask
from router.core.constants import Constants
from router.core.dispatch import CoreDispatcher
from router.core.entry import Entry
from router.core.ledger import Ledger
from router.core.model import Ending, Flight, Shape, Verdict
from router.core.policies import POLICIES
from router.core.score import excess_ms, harm_ms, scan, terms, ttft_at, ttft_ms, uncached
from tests.router.core.fleets import dispatcher, fleet, load, replica, report, shape
from wire.records import ModelPolicy, ModelState

CALM = Constants(explore=0.0)
backlogs = st.floats(0, 1e6)
small = settings(max_examples=60, deadline=None)


def expected(core: CoreDispatcher, asked: Shape, name: str = "a") -> float:
    return {c.replica: c.expected_ms for c in core.explain(asked, now=0.0)}[name]


@small
@given(backlogs, backlogs, st.integers(0, 40_000))
def test_more_backlog_never_makes_a_replica_look_faster(one: float, other: float, size: int) -> None:
    times = []
    for sequence, tokens in enumerate(sorted((one, other))):
        core = dispatcher(replica("a"))
        core.report(report(load("a", waiting=1, waiting_uncached_tokens=tokens), sequence=sequence), 0.0)
        times.append(expected(core, shape(prompt=bytes(size))))
    assert times[0] <= times[1]


@small
@example(one=1.0, other=0.96875, size=3516)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 200_000))
def test_fuller_memory_never_makes_a_replica_look_faster(one: float, other: float, size: int) -> None:
    times = []
    for use in sorted((one, other)):
        core = dispatcher(replica("a"))
        core.report(report(load("a", kv_use=use, kv_capacity_tokens=50_000)), 0.0)
        times.append(expected(core, shape(prompt=bytes(size))))
    assert times[0] <= times[1] + 0.002


@small
@given(st.integers(0, 120), st.integers(0, 120))
def test_more_of_the_prompt_in_cache_never_makes_a_replica_look_slower(one: int, other: int) -> None:
    prompt = bytes(range(256)) * 128
    times = []
    for blocks in sorted((one, other), reverse=True):
        core = dispatcher(replica("a"))
        known = shape(prompt=prompt[: 256 * blocks])
        core.begin(core.pick(known, now=0.0), known, 0.0).end(Ending.COMPLETE, 0.0)
        times.append(expected(core, shape(prompt=prompt)))
    assert times[0] <= times[1]


@small
@given(st.floats(0, 2), st.floats(0, 2))
def test_a_longer_way_never_makes_a_replica_look_faster(one: float, other: float) -> None:
    times = []
    for seconds in sorted((one, other)):
        core = dispatcher(replica("a"))
        core.observe_rtt("n-a", seconds)
        times.append(expected(core, shape()))
    assert times[0] <= times[1]


@small
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 40_000))
def test_more_answers_under_way_never_make_a_replica_look_better(one: int, other: int, size: int) -> None:
    prices = []
    for running in sorted((one, other)):
        core = dispatcher(replica("a"))
        core.report(report(load("a", running=running)), 0.0)
        prices.append(sum(core.explain(shape(prompt=bytes(size)), now=0.0)[0].terms.values()))
    assert prices[0] <= prices[1]


columns = st.lists(st.tuples(*[st.floats(0, 1000)] * 8, st.floats(1, 10), st.floats(0.1, 20)), min_size=1, max_size=8)


@small
@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=6), st.integers(0, 300_000), st.data())
def test_the_terms_of_a_replica_add_up_to_its_score(backlog: list[int], size: int, data: st.DataObject) -> None:
    core = dispatcher(*(replica(f"r{n}") for n in range(len(backlog))), replica("late", ModelState.SLEEPING))
    for n, tokens in enumerate(backlog):
        use = data.draw(st.floats(0, 1))
        figures = load(f"r{n}", waiting=2, waiting_uncached_tokens=tokens, kv_use=use, kv_capacity_tokens=90_000)
        core.report(report(figures), 0.0)
    core.apply(fleet(*(replica(f"r{n}") for n in range(len(backlog))), replica("new")), 0.0)
    group = core._belief.groups["m", False]
    prompt = size / 4.0
    ask = Ask(prompt_tokens=prompt, output_tokens=200.0, per_byte=0.25, small=group.small(prompt))
    matched = np.array([float(data.draw(st.integers(0, size))) for _ in range(len(group))])
    fresh = uncached(group.figures, ask, matched)
    whole = ttft_ms(group.figures, ask, fresh, CALM) + excess_ms(group.figures, ask, CALM)
    whole += harm_ms(group.figures, fresh)
    parts = sum(terms(group.figures, ask, matched, CALM).values())
    able = np.isfinite(whole)
    np.testing.assert_allclose(np.asarray(parts)[able], whole[able], rtol=1e-9, atol=1e-6)


@small
@given(
    st.lists(st.tuples(st.integers(0, 30_000), st.floats(0, 1), st.booleans()), min_size=1, max_size=6),
    st.integers(0, 300_000),
    st.sampled_from((0.0, 200.0)),
    st.data(),
)
def test_one_by_one_a_few_replicas_score_as_all_at_once(
    loads: list[tuple[int, float, bool]], size: int, output: float, data: st.DataObject
) -> None:
    states = [ModelState.READY if able else ModelState.FAILED for _, _, able in loads]
    core = dispatcher(*(replica(f"r{n}", state) for n, state in enumerate(states)))
    for n, (tokens, use, _) in enumerate(loads):
        figures = {"waiting_uncached_tokens": tokens, "kv_use": use, "kv_capacity_tokens": 90_000}
        core.report(report(load(f"r{n}", state=states[n], waiting=2, running=3, **figures)), 0.0)
    group = core._belief.groups["m", False]
    ask = Ask(prompt_tokens=size / 4.0, output_tokens=output, per_byte=0.25, small=group.small(size / 4.0))
    matched = [float(data.draw(st.integers(0, size))) for _ in loads] if data.draw(st.booleans()) else None
    fresh = uncached(group.figures, ask, None if matched is None else np.array(matched))
    times = ttft_ms(group.figures, ask, fresh, CALM)
    whole = times + excess_ms(group.figures, ask, CALM) + harm_ms(group.figures, fresh)
    scores = scan(group.columns, ask, matched, CALM)
    waits = [ttft_at(column, ask, matched[n] if matched else 0.0, CALM) for n, column in enumerate(group.columns)]
    np.testing.assert_allclose(scores, whole, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(waits, times, rtol=1e-9, atol=1e-6)


happenings = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "start", "start", "end", "report", "way"]),
        st.integers(0, 30),
        st.sampled_from((0.0, 0.01, 0.3, 1.0, 40.0)),
        st.sampled_from(list(Ending)),
    ),
    max_size=40,
)


@small
@given(happenings, st.integers(1, 3), st.booleans())
def test_figures_made_anew_for_a_request_are_those_made_from_everything(
    history: list[tuple[str, int, float, Ending]], routers: int, together: bool
) -> None:
    """A request renews what it changed; what else is known of the replica holds until there are news, or too long."""
    replicas = [replica(name, node="n" if together else name) for name in "ab"]
    core = CoreDispatcher(rng=random.Random(1))
    core.apply(fleet(*replicas, routers=routers), 0.0)
    group = core._belief.groups["m", False]
    flights: list[Flight] = []
    now = 0.0
    for number, (what, which, passed, ending) in enumerate(history):
        now += passed
        flight = flights[which % len(flights)] if flights else None
        if what == "send":
            flights.append(core.begin(core.pick(shape(), now=now), shape(), now))
        elif what == "start" and flight is not None:
            flight.first_token(now)
        elif what == "end" and flight is not None:
            flight.end(ending, now, prompt_tokens=90, cached_tokens=which, output_tokens=which)
        elif what == "report":
            one = replicas[which % 2]
            said = load(one.replica, running=which % 3, waiting=which % 2, kv_use=which / 30, kv_capacity_tokens=90_000)
            core.report(report(said, node=one.node, sequence=number), now)
        elif what == "way":
            core.observe_rtt(replicas[which % 2].node, which / 1000.0)
        for row in list(group._touched):
            group.refresh_due(now)
            state, renewed = group.present[row], group.columns[row]
            outlook = state.outlook
            group.refresh(state, now)
            assert group.columns[row] == renewed
            state.outlook = outlook


@small
@given(st.lists(st.sampled_from(list(ModelState)), min_size=1, max_size=6), st.sampled_from(list(POLICIES)), st.data())
def test_nobody_is_ever_sent_to_a_replica_that_cannot_serve(
    states: list[ModelState], policy: str, data: st.DataObject
) -> None:
    replicas = [replica(f"r{n}", state) for n, state in enumerate(states)]
    core = dispatcher(*replicas, models=(ModelPolicy(model="m", routing=policy),))
    tried = data.draw(st.sets(st.sampled_from([r.replica for r in replicas])))
    draining = data.draw(st.sets(st.sampled_from([r.node for r in replicas])))
    core.apply(fleet(*replicas, models=(ModelPolicy(model="m", routing=policy),), draining=tuple(draining)), 0.0)
    able = {r.replica for r in replicas if r.replica not in tried and r.node not in draining}
    decision = core.pick(shape(), exclude=tried, now=0.0)
    state = {r.replica: r.state for r in replicas}
    match decision.verdict:
        case Verdict.SEND:
            assert decision.replica in able
            assert state[decision.replica] is ModelState.READY
        case Verdict.WAKE:
            assert state[decision.replica] in (ModelState.SLEEPING, ModelState.ON_DISK)
            assert decision.replica in able
        case Verdict.HOLD:
            assert decision.replica in able
        case _:
            usable = {ModelState.READY, ModelState.LOADING, ModelState.SLEEPING, ModelState.ON_DISK}
            assert not [name for name in able if state[name] in usable]


@small
@given(st.lists(st.floats(0, 1e5), min_size=2, max_size=8, unique=True))
def test_with_nothing_else_known_the_least_expected_work_wins(backlog: list[float]) -> None:
    core = dispatcher(*(replica(f"r{n}") for n in range(len(backlog))), constants=Constants(tie_ms=0, tie_fraction=0))
    for n, tokens in enumerate(backlog):
        core.report(report(load(f"r{n}", waiting=1, waiting_uncached_tokens=tokens)), 0.0)
    best = min(core.explain(shape(), now=0.0), key=lambda c: c.expected_ms)
    chosen = core.pick(shape(), now=0.0).replica
    found = {c.replica: c.expected_ms for c in core.explain(shape(), now=0.0)}
    assert found[chosen] <= best.expected_ms + 1e-6


@small
@given(st.integers(0, 10_000), st.integers(1, 200))
def test_with_no_reports_at_all_requests_still_go_out_and_spread(seed: int, count: int) -> None:
    core = dispatcher(*(replica(name) for name in "abcd"), seed=seed)
    for n in range(count):
        asked = shape(prompt=n.to_bytes(2, "big") * 8000)
        core.begin(core.pick(asked, now=1000.0), asked, 1000.0)
    counts = [core.in_flight().get(name, 0) for name in "abcd"]
    assert count == sum(counts)
    assert max(counts) - min(counts) <= 2


steps = st.lists(
    st.tuples(st.sampled_from(["send", "start", "end", "report"]), st.integers(0, 30), st.floats(0, 1e4)), max_size=60
)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_the_ledger_is_never_negative_and_never_counts_twice(history: list[tuple[str, int, float]]) -> None:
    """An engine that has exactly our requests is mirrored exactly, whatever the order of reports and endings."""
    ledger = Ledger(CALM)
    alive: list[Entry] = []
    now = 0.0
    for what, which, tokens in history:
        now += 0.01
        entry = alive[which % len(alive)] if alive else None
        if what == "send":
            alive.append(ledger.send(uncached=tokens, context=tokens, sequences=1, now=now))
        elif what == "start" and entry is not None:
            ledger.start(entry, now)
        elif what == "end" and entry is not None:
            alive.remove(entry)
            assert ledger.end(entry, now)
        elif what == "report":
            waiting = [e for e in alive if not e.started]
            true = load(
                "a",
                running=len(alive) - len(waiting),
                waiting=len(waiting),
                waiting_uncached_tokens=sum(e.uncached for e in waiting),
                seen=ledger.sent,
            )
            ledger.reconcile(true, now)
        own = sum(e.uncached for e in alive if not e.started)
        backlog = ledger.backlog(routers=1, now=now)
        assert backlog >= 0.0
        np.testing.assert_allclose(backlog, own, atol=1e-6 * (1 + own))
        np.testing.assert_allclose(ledger.decoding(routers=1, now=now), sum(e.started for e in alive), atol=1e-9)
        assert len(alive) == len(ledger.entries)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50), st.sampled_from(list(Ending))), max_size=80))
def test_counts_return_to_zero_after_every_history(history: list[tuple[int, int, Ending]]) -> None:
    core = CoreDispatcher(rng=random.Random(1))
    names = "abc"
    core.apply(fleet(*(replica(name) for name in names)), 0.0)
    flights: list[Flight] = []
    now = 0.0
    for what, which, ending in history:
        now += 0.5
        flight = flights[which % len(flights)] if flights else None
        if what <= 1:
            decision = core.pick(shape(), now=now)
            if decision.verdict is Verdict.SEND:
                flights.append(core.begin(decision, shape(), now))
        elif what == 2 and flight is not None:
            flight.first_token(now)
        elif what == 3 and flight is not None:
            flight.end(ending, now)
        elif what == 4:
            core.apply(fleet(*(replica(name) for n, name in enumerate(names) if n != which % 4)), now)
        elif what == 5:
            core.report(report(load("a", generation=which, seen=which), sequence=int(now * 2)), now)
    for flight in flights:
        flight.end(Ending.COMPLETE, now)
    assert {} == core.in_flight()

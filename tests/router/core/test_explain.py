from __future__ import annotations

import gc
import weakref

import pytest

from router.core.constants import Constants
from router.core.model import Ending, Shape, Verdict
from router.core.score import FIGURES, RAMP
from tests.router.core.fleets import dispatcher, load, replica, report
from wire.records import ModelState


def asked(request_id: str, size: int = 400) -> Shape:
    return Shape(request_id=request_id, model="m", prompt=b"x" * size)


def test_the_terms_add_up_to_what_the_decision_expected() -> None:
    core = dispatcher(replica("a"), replica("b"))
    core.report(report(load("a", waiting=3, waiting_uncached_tokens=9000.0, running=5)), 0.0)
    decision = core.pick(asked("q", 20_000), now=0.0)
    (told,) = core.why("q")
    best = told.candidates[0]
    assert decision.replica == best.replica
    assert sum(best.terms.values()) == pytest.approx(best.expected_ms, abs=0.01)
    no_time = sum(best.terms.get(term, 0.0) for term in ("slower_decode", "kv", "health", "others"))
    assert decision.expected_ttft_ms == pytest.approx(best.expected_ms - no_time, abs=0.01)
    assert best == core.explain(asked("q", 20_000), now=0.0)[0]


def test_a_prediction_contains_no_penalty_for_long_prompts_either() -> None:
    core = dispatcher(replica("a"))
    core.report(report(load("a", kv_use=0.5, kv_capacity_tokens=50_000, running=5)), 0.0)
    decision = core.pick(asked("q", 60_000), now=0.0)
    (only,) = core.explain(asked("q", 60_000), now=0.0)
    assert only.terms["kv"] > 150.0
    assert decision.expected_ttft_ms == pytest.approx(
        only.expected_ms - only.terms["kv"] - only.terms["others"], abs=0.01
    )


def test_a_request_that_was_held_retried_and_resumed_reads_like_a_story() -> None:
    core = dispatcher(replica("a", ModelState.SLEEPING), replica("b", ModelState.SLEEPING))
    q = asked("q")
    core.pick(q, now=0.0)
    for now in (1.0, 2.0, 2.5):
        core.pick(q, now=now)
    core.report(report(load("a"), sequence=1), 3.0)
    core.report(report(load("b"), sequence=1), 3.0)
    first = core.pick(q, now=3.0)
    core.begin(first, q, 3.0).end(Ending.FAILED, 3.1)
    second = core.pick(q, exclude={first.replica}, now=3.1)
    flight = core.begin(second, q, 3.1)
    flight.first_token(3.2)
    flight.end(Ending.FAILED, 4.0)
    resumed = Shape(request_id="q", model="m", prompt=b"x" * 400, delivered_tokens=50)
    core.begin(core.pick(resumed, now=4.0), resumed, 4.0)
    lines = core.story("q").splitlines()
    order = [
        "wake ",
        "hold ",
        "(3 looks)",
        "send ",
        "failed on",
        "tried already",
        "first token from",
        "failed on",
        "send ",
    ]
    at = -1
    for words in order:
        at = next(n for n, line in enumerate(lines) if n >= at and words in line)
    assert [Verdict.WAKE, Verdict.HOLD, Verdict.SEND, Verdict.SEND, Verdict.SEND] == [t.verdict for t in core.why("q")]


def test_nothing_is_told_of_a_request_nobody_remembers() -> None:
    core = dispatcher(replica("a"), constants=Constants(records=3))
    for n in range(5):
        core.pick(asked(f"q{n}"), now=0.0)
    assert [] == core.why("q1")
    assert "No decision" in core.story("q1")
    assert 1 == len(core.why("q2"))
    assert 3 == len(core._records)


def test_many_decisions_about_one_request_are_bounded_too() -> None:
    core = dispatcher(replica("a"), constants=Constants(records=3))
    for n in range(9):
        core.pick(asked("q"), now=float(n))
    assert 3 == len(core.why("q"))


def test_only_the_best_of_many_are_remembered() -> None:
    core = dispatcher(*(replica(f"r{n}") for n in range(40)), replica("z", ModelState.FAILED))
    decision = core.pick(asked("q"), now=0.0)
    (told,) = core.why("q")
    assert 16 == len(told.candidates)
    assert decision.replica in {c.replica for c in told.candidates}
    assert "and 11 more" in core.story("q")
    assert 41 == len(core.explain(asked("q"), now=0.0))


def test_a_replica_that_came_later_does_not_change_what_is_told() -> None:
    core = dispatcher(replica("a"), replica("b"))
    core.pick(asked("q"), now=0.0)
    before = core.why("q")
    core.apply(type(core._belief.fleet)(2), 1.0)
    assert before == core.why("q")


def test_a_candidate_that_costs_next_to_nothing_is_said_to() -> None:
    core = dispatcher(replica("a"))
    core.pick(asked("q"), now=0.0)
    (record,) = core._records.of("q")
    record.field.columns = [[float(figure == RAMP) for figure in range(FIGURES)]]
    assert "next to nothing" in core.story("q")


def test_a_flight_whose_record_is_forgotten_flies_on() -> None:
    core = dispatcher(replica("a"), constants=Constants(records=1))
    decision = core.pick(asked("q"), now=0.0)
    core.pick(asked("other"), now=0.0)
    flight = core.begin(decision, asked("q"), 0.0)
    flight.first_token(0.1)
    flight.end(Ending.COMPLETE, 0.2)
    assert [] == core.why("q")


def test_decisions_leave_no_cycles_for_the_collector() -> None:
    core = dispatcher(replica("a"), constants=Constants(records=1))
    decision = core.pick(asked("q"), now=0.0)
    record = weakref.ref(core._records.of("q")[0])
    core.begin(decision, asked("q"), 0.0).end(Ending.COMPLETE, 0.1)
    del decision
    gc.disable()
    try:
        core.pick(asked("other"), now=0.0)
        assert record() is None
    finally:
        gc.enable()

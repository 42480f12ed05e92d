from __future__ import annotations

import pytest

from router.core.constants import Constants
from router.core.hold import Way, least
from router.core.model import Verdict
from tests.router.core.fleets import dispatcher, fleet, load, replica, report, shape
from wire.records import ModelPolicy, ModelState

SEND = Way(Verdict.SEND, 1000.0)


def test_a_loading_model_is_held_for_what_is_left() -> None:
    core = dispatcher(replica("a", ModelState.LOADING))
    core.report(report(load("a", state=ModelState.LOADING, load_remaining_s=0.4)), 0.0)
    held = core.pick(shape(), now=0.0)
    assert (Verdict.HOLD, "a") == (held.verdict, held.replica)
    assert 400.0 < held.expected_ttft_ms < 500.0
    assert 0.4 < held.retry_after_s < 0.5


def test_of_two_that_are_equal_but_for_a_moment_the_one_that_is_ready_is_not_waited_for() -> None:
    core = dispatcher(replica("a", ModelState.LOADING), replica("b"))
    for _ in range(50):
        core.observe_rtt("n-a", 0.001)
        core.observe_rtt("n-b", 0.003)
    core.report(report(load("a", state=ModelState.LOADING, load_remaining_s=0.0005)), 0.0)
    core.report(report(load("b")), 0.0)
    assert ["a", "b"] == [candidate.replica for candidate in core.explain(shape(), now=0.0)]
    picked = core.pick(shape(), now=0.0)
    assert (Verdict.SEND, "b") == (picked.verdict, picked.replica)


def test_the_nearest_of_sleeping_replicas_is_woken_once() -> None:
    core = dispatcher(replica("a", ModelState.ON_DISK), replica("b", ModelState.SLEEPING))
    woken = core.pick(shape(), now=0.0)
    assert (Verdict.WAKE, "b") == (woken.verdict, woken.replica)
    assert [Verdict.HOLD] * 3 == [core.pick(shape(), now=now).verdict for now in (0.0, 1.0, 2.9)]


def test_a_wake_that_nobody_answers_is_asked_again_and_then_counts_against_the_replica() -> None:
    core = dispatcher(replica("a", ModelState.SLEEPING), replica("b", ModelState.SLEEPING))
    first = core.pick(shape(), now=0.0)
    again = core.pick(shape(), now=11.0)
    assert (Verdict.WAKE, Verdict.WAKE) == (first.verdict, again.verdict)
    assert first.replica != again.replica


def test_a_wake_becomes_a_load_and_its_time_is_learned() -> None:
    core = dispatcher(replica("a", ModelState.SLEEPING))
    core.pick(shape(), now=0.0)
    core.report(report(load("a", state=ModelState.LOADING), sequence=1), 0.5)
    assert Verdict.HOLD is core.pick(shape(), now=0.6).verdict
    core.report(report(load("a", state=ModelState.READY), sequence=2), 1.0)
    assert Verdict.SEND is core.pick(shape(), now=1.0).verdict
    core.report(report(load("a", state=ModelState.SLEEPING), sequence=3), 60.0)
    assert 2.0 < core._belief.replicas["a"].load_s(60.0) < 3.0


def test_a_load_under_way_before_our_time_is_learned_too() -> None:
    core = dispatcher(replica("a", ModelState.LOADING), replica("b", ModelState.ON_DISK))
    core.report(report(load("b", state=ModelState.LOADING)), 1.0)
    core.report(report(load("b", state=ModelState.READY), sequence=2), 6.0)
    assert 20.0 < core._belief.replicas["b"].loads[ModelState.ON_DISK].mean_s < 40.0
    core.report(report(load("a", state=ModelState.READY)), 7.0)
    assert core._belief.replicas["a"].loads[ModelState.LOADING].mean_s < 20.0


def test_a_state_that_jumps_from_disk_to_ready_teaches_no_time() -> None:
    core = dispatcher(replica("a", ModelState.ON_DISK))
    core.report(report(load("a", state=ModelState.READY)), 1.0)
    assert 40.0 == core._belief.replicas["a"].loads[ModelState.ON_DISK].mean_s


def test_a_saturated_warm_replica_is_worse_than_waking_another() -> None:
    core = dispatcher(replica("a"), replica("b", ModelState.SLEEPING))
    assert Verdict.SEND is core.pick(shape(), now=0.0).verdict
    core.report(report(load("a", waiting=50, waiting_uncached_tokens=400_000.0)), 0.0)
    woken = core.pick(shape(), now=0.0)
    assert (Verdict.WAKE, "b") == (woken.verdict, woken.replica)


def test_a_wake_beside_a_model_in_use_pays_for_the_one_it_may_evict() -> None:
    alone, beside = replica("a", ModelState.SLEEPING, node="n1"), replica("b", ModelState.SLEEPING, node="n2")
    core = dispatcher(alone, beside, replica("x", node="n2", model="other"))
    other = shape("other")
    core.begin(core.pick(other, now=0.0), other, 0.0)
    assert "a" == core.pick(shape(), now=0.1).replica


def test_loads_on_one_gpu_follow_each_other() -> None:
    busy, free = replica("a", ModelState.SLEEPING, node="n1"), replica("b", ModelState.SLEEPING, node="n2")
    core = dispatcher(busy, free, replica("x", ModelState.LOADING, node="n1", model="other"))
    assert "b" == core.pick(shape(), now=0.0).replica
    both = dispatcher(
        busy, replica("y", ModelState.SLEEPING, node="n1", model="other"), replica("z", node="n1", model="third")
    )
    both.pick(shape("other"), now=0.0)
    assert both.pick(shape(), now=0.0).expected_ttft_ms > 6000.0


def test_another_region_must_be_clearly_better() -> None:
    near, far = Way(Verdict.SPILL, 980.0, "us"), Way(Verdict.SPILL, 700.0, "us")
    assert SEND is least(SEND, spill=near, fallback=None, constants=Constants())
    assert far is least(SEND, spill=far, fallback=None, constants=Constants())
    assert far is least(None, spill=far, fallback=None, constants=Constants())
    assert least(None, spill=None, fallback=None, constants=Constants()) is None


def test_requests_spill_to_the_region_that_was_last_known_to_be_faster() -> None:
    core = dispatcher(replica("a", ModelState.ON_DISK))
    core.peer("us", "m", 300.0, 0.0)
    core.peer("jp", "m", 500.0, 0.0)
    spilled = core.pick(shape(), now=1.0)
    assert (Verdict.SPILL, "us") == (spilled.verdict, spilled.region)
    core.peer("jp", "m", 500.0, 6.0)
    assert "jp" == core.pick(shape(), now=6.0).region
    assert Verdict.WAKE is core.pick(shape(), now=20.0).verdict


def test_a_fast_region_of_our_own_does_not_spill() -> None:
    core = dispatcher(replica("a"))
    core.peer("us", "m", 300.0, 0.0)
    assert Verdict.SEND is core.pick(shape(), now=0.0).verdict


@pytest.mark.parametrize(
    ("allowed", "state", "expected"),
    [
        (True, ModelState.READY, (Verdict.SEND, "b", "small")),
        (False, ModelState.READY, (Verdict.WAKE, "a", "")),
        (True, ModelState.SLEEPING, (Verdict.WAKE, "a", "")),
    ],
)
def test_the_substitute_answers_when_allowed_and_warm(
    allowed: bool, state: ModelState, expected: tuple[Verdict, str, str]
) -> None:
    core = dispatcher(
        replica("a", ModelState.ON_DISK),
        replica("b", state, model="small"),
        models=(ModelPolicy(model="m", fallback="small"),),
    )
    decision = core.pick(shape(fallback_allowed=allowed), now=0.0)
    assert expected == (decision.verdict, decision.replica, decision.model)


def test_of_a_silent_agent_the_last_word_counts_until_the_registry_has_a_newer_one() -> None:
    core = dispatcher(replica("a", ModelState.SLEEPING))
    core.report(report(load("a", state=ModelState.READY)), 0.1)
    assert Verdict.SEND is core.pick(shape(), now=0.1).verdict
    assert Verdict.SEND is core.pick(shape(), now=10.0).verdict
    core.apply(fleet(replica("a", ModelState.LOADING)), 11.0)
    assert Verdict.HOLD is core.pick(shape(), now=11.0).verdict
    core.report(report(load("a", state=ModelState.READY), sequence=2), 12.0)
    core.apply(fleet(replica("a", ModelState.DRAINING)), 12.0)
    assert Verdict.NONE is core.pick(shape(), now=12.0).verdict


def test_a_load_that_fails_is_no_longer_waited_for() -> None:
    core = dispatcher(replica("a", ModelState.SLEEPING))
    core.pick(shape(), now=0.0)
    core.report(report(load("a", state=ModelState.LOADING)), 0.1)
    core.report(report(load("a", state=ModelState.FAILED), sequence=2), 0.2)
    assert Verdict.NONE is core.pick(shape(), now=0.2).verdict
    core.apply(fleet(replica("a", ModelState.ABSENT)), 60.0)
    assert "not on the node" in core.pick(shape(), now=61.0).reason

from __future__ import annotations

import random

import pytest

from router.core.admission import PACES, Admission, Limits, Ticket, Turn, Why
from wire.records import AdmissionClass

POOL = ("m", False)
PRESSED_MS = 3000.0


def admission(**limits: object) -> Admission:
    return Admission(rng=random.Random(1), limits=Limits(**limits))  # type: ignore[arg-type]


def enter(
    gate: Admission, tenant: str = "t", *, ahead_ms: float = PRESSED_MS, now: float = 0.0, **more: object
) -> Ticket:
    fields = {"tokens": 1000.0} | more
    return gate.enter(POOL, tenant, ahead_ms=ahead_ms, now=now, **fields)  # type: ignore[arg-type]


def drain(gate: Admission, now: float = 1.0) -> list[Ticket]:
    released = []
    while found := gate.release(lambda _: 0.0, now):
        released += found
    return released


def test_without_pressure_nobody_waits() -> None:
    gate = admission()
    assert Turn.ADMITTED is enter(gate, ahead_ms=1999.0).turn
    assert {} == gate.waiting()


def test_under_pressure_requests_wait_until_it_falls() -> None:
    gate = admission()
    ticket = enter(gate)
    assert (Turn.WAITING, {POOL: 1}) == (ticket.turn, gate.waiting())
    assert [] == gate.release(lambda _: PRESSED_MS, 1.0)
    assert [ticket] == gate.release(lambda _: 1000.0, 2.0)
    assert Turn.ADMITTED is ticket.turn
    assert {} == gate.waiting()


def test_nobody_overtakes_those_that_wait() -> None:
    gate = admission()
    enter(gate)
    second = enter(gate, ahead_ms=10.0)
    assert (Turn.WAITING, 1) == (second.turn, second.before)


def test_pools_wait_apart() -> None:
    gate = admission()
    enter(gate)
    assert Turn.ADMITTED is gate.enter(("other", False), "t", ahead_ms=10.0, now=0.0).turn
    assert Turn.ADMITTED is gate.enter(("m", True), "t", ahead_ms=10.0, now=0.0).turn
    gate.enter(("other", False), "t", ahead_ms=PRESSED_MS, now=0.0)
    assert {POOL: 1, ("other", False): 1} == gate.waiting()
    assert [POOL] == [ticket.pool for ticket in gate.release({POOL: 0.0, ("other", False): 9e9}.__getitem__, 1.0)]


def test_one_is_released_at_a_time_so_that_it_counts_for_the_next() -> None:
    gate = admission()
    for _ in range(3):
        enter(gate)
    assert 1 == len(gate.release(lambda _: 0.0, 1.0))


def test_a_request_that_cannot_be_in_time_is_told_when_to_come_back_and_which_limit_it_met() -> None:
    gate = admission(retry_spread=0.0)
    ticket = enter(gate, ahead_ms=70_500.0)
    assert (Turn.REJECTED, Why.LATE, 71.0) == (ticket.turn, ticket.why, ticket.retry_after_s)
    assert "only in 70.5 s, and it may wait 60 s (admission_wait_s)" in ticket.reason


def test_a_deadline_that_a_client_named_is_for_the_first_token_so_its_own_prefill_counts() -> None:
    gate = admission()
    late = enter(gate, ahead_ms=500.0, own_ms=600.0, now=5.0, deadline=6.0)
    assert (Turn.REJECTED, Why.LATE) == (late.turn, late.why)
    assert "only in 1.1 s, and it may wait 1 s (x-switchyard-first-token-limit-s)" in late.reason
    assert Turn.ADMITTED is enter(gate, ahead_ms=300.0, own_ms=600.0, now=5.0, deadline=6.0).turn


def test_without_a_queue_a_request_is_tried_however_long_it_takes_by_itself() -> None:
    gate = admission()
    assert Turn.ADMITTED is enter(gate, ahead_ms=0.0, own_ms=9000.0, deadline=1.0).turn
    assert Turn.ADMITTED is enter(gate, ahead_ms=100.0, own_ms=900_000.0).turn


def test_a_client_cannot_wait_longer_than_the_class_of_the_model() -> None:
    ticket = enter(admission(), deadline=1e9)
    assert (60.0, "admission_wait_s") == (ticket.wait_s, ticket.limit)


@pytest.mark.parametrize(
    ("class_", "wait_s"),
    [(AdmissionClass.INTERACTIVE, 10.0), (AdmissionClass.STANDARD, 60.0), (AdmissionClass.BATCH, 600.0)],
)
def test_the_class_of_a_model_says_how_long_its_requests_wait(class_: AdmissionClass, wait_s: float) -> None:
    ticket = enter(admission(), class_=class_)
    assert (wait_s, wait_s) == (ticket.wait_s, ticket.deadline)


def test_batch_requests_stand_behind_the_others() -> None:
    gate = admission()
    batch = enter(gate, class_=AdmissionClass.BATCH)
    standard = enter(gate)
    assert [standard, batch] == drain(gate)


def test_a_request_whose_turn_does_not_come_in_time_is_told_so() -> None:
    gate = admission()
    ticket, other = enter(gate, deadline=4.0), enter(gate)
    assert [] == gate.expire(4.0)
    assert [ticket] == gate.expire(4.5)
    assert (Turn.REJECTED, Why.EXPIRED, 1.0) == (ticket.turn, ticket.why, ticket.retry_after_s)
    assert "waited 4.5 s in the router without its turn coming, and may wait 4 s" in ticket.reason
    assert [other] == gate.expire(61.0)
    assert {} == gate.waiting()


def test_a_client_that_leaves_frees_its_place_at_once() -> None:
    gate = admission()
    first, second, third = enter(gate), enter(gate), enter(gate, "other")
    gate.leave(first)
    gate.leave(first)
    gate.leave(third)
    assert (Turn.LEFT, {POOL: 1}) == (first.turn, gate.waiting())
    gate.leave(second)
    assert {} == gate.waiting()
    assert [] == drain(gate)


def test_leaving_after_the_release_changes_nothing() -> None:
    gate = admission()
    ticket = enter(gate)
    assert [ticket] == drain(gate)
    gate.leave(ticket)
    assert Turn.ADMITTED is ticket.turn


def test_higher_priority_goes_first_and_age_makes_up_for_it() -> None:
    gate = admission()
    low = enter(gate)
    high = enter(gate, priority=2)
    assert [high, low] == drain(gate, now=1.0)
    old = enter(gate, now=0.0)
    new = enter(gate, now=31.0, priority=2)
    assert [old, new] == drain(gate, now=31.0)


def test_tenants_take_turns_by_tokens_and_weight() -> None:
    gate = admission()
    for _ in range(40):
        enter(gate, "big", tokens=4000.0)
        enter(gate, "small", tokens=1000.0)
        enter(gate, "heavy", tokens=1000.0, weight=2.0)
    first = [gate.release(lambda _: 0.0, 1.0)[0] for _ in range(45)]
    tokens = {name: sum(t.tokens for t in first if t.tenant == name) for name in ("big", "small", "heavy")}
    assert tokens["big"] == pytest.approx(tokens["small"], rel=0.4)
    assert tokens["heavy"] == pytest.approx(2 * tokens["small"], rel=0.3)


def test_what_can_be_done_without_is_shed_first() -> None:
    gate = admission()
    shed = [enter(gate, ahead_ms=57_000.0, priority=-1) for _ in range(60)]
    assert sum(t.why is Why.SHED for t in shed) > 30
    assert "95% of what requests may wait" in next(t.reason for t in shed if t.why is Why.SHED)
    assert Turn.WAITING is enter(gate, ahead_ms=57_000.0).turn


def test_a_full_queue_refuses_equals_and_makes_room_for_better() -> None:
    gate = admission(queue=4, tenant_share=1.0)
    waiting = [enter(gate, "a", now=float(n) / 10) for n in range(4)]
    refused = enter(gate, "b", now=1.0)
    assert (Why.FULL, "4 requests wait for the model already (admission_queue)") == (refused.why, refused.reason)
    better = enter(gate, "b", now=1.0, priority=1)
    assert Turn.WAITING is better.turn
    assert Why.PUSHED_OUT is waiting[3].why
    assert waiting[3] in gate.release(lambda _: PRESSED_MS, 1.1)
    assert {POOL: 4} == gate.waiting()


def test_a_queue_of_one_makes_room_too() -> None:
    gate = admission(queue=1)
    victim, better = enter(gate, "a"), enter(gate, "b", priority=1)
    assert (Turn.REJECTED, Turn.WAITING, {POOL: 1}) == (victim.turn, better.turn, gate.waiting())


def test_one_tenant_cannot_keep_the_others_out() -> None:
    gate = admission(queue=4)
    crowd = [enter(gate, "crowd", now=float(n) / 10) for n in range(4)]
    assert Turn.WAITING is enter(gate, "other", now=1.0).turn
    assert 3 == sum(t.turn is Turn.WAITING for t in crowd)
    refused = enter(gate, "crowd", now=1.0)
    assert (Turn.REJECTED, Why.SHARE) == (refused.turn, refused.why)
    assert "3 of the tenant's requests wait for the model already, of 4 in all" in refused.reason


def test_the_wait_that_is_promised_follows_the_pace_of_the_queue_also_after_it_was_empty() -> None:
    gate = admission(wait_s=200.0, retry_spread=0.0)
    for _ in range(60):
        enter(gate)
    for second in range(60):
        gate.release(lambda _: 0.0, 2.0 * second)
    assert {} == gate.waiting()
    for _ in range(30):
        enter(gate, now=120.0)
    late = enter(gate, now=120.0, deadline=150.0)
    assert (Why.LATE, 63.0) == (late.why, late.retry_after_s)


def test_the_pace_is_known_after_a_few_have_gone_also_when_the_first_went_together() -> None:
    gate = admission(retry_spread=0.0)
    for _ in range(40):
        enter(gate)
    for second in (0.0, 0.0, 2.0, 4.0, 6.0, 8.0):
        gate.release(lambda _: 0.0, second)
    late = enter(gate, now=8.0, deadline=9.0)
    assert (Why.LATE, 58.0) == (late.why, late.retry_after_s)  # 3 s ahead, and 34 that went each 1.6 s on average


def test_those_refused_together_are_asked_back_at_different_times_and_never_too_early() -> None:
    gate = admission()
    told = {enter(gate, ahead_ms=80_000.0).retry_after_s for _ in range(50)}
    assert min(told) >= 80.0
    assert max(told) <= 100.0
    assert len(told) > 5


def test_paces_of_pools_long_gone_are_forgotten() -> None:
    gate = admission()
    for number in range(PACES + 1):
        pool = (f"m{number}", False)
        for _ in range(2):
            gate.enter(pool, "t", ahead_ms=PRESSED_MS, now=0.0)
        drain(gate)
    assert PACES == len(gate._paces)

from __future__ import annotations

import random

import pytest

from router.core.admission import Admission, Limits, Ticket, Turn
from router.core.model import Shape


def admission(**limits: object) -> Admission:
    return Admission(rng=random.Random(1), limits=Limits(**limits))  # type: ignore[arg-type]


def enter(
    gate: Admission, tenant: str = "t", *, expected_ms: float = 6000.0, now: float = 0.0, **more: object
) -> Ticket:
    fields = {"priority": 0, "weight": 1.0, "tokens": 1000.0} | more
    asked = Shape(request_id="q", model="m", tenant=tenant, deadline=float(fields.pop("deadline", 0.0)))  # type: ignore[arg-type]
    return gate.enter(asked, expected_ms=expected_ms, now=now, **fields)  # type: ignore[arg-type]


def drain(gate: Admission, now: float = 1.0, expected_ms: float = 0.0) -> list[Ticket]:
    released = []
    while found := gate.release(lambda _: expected_ms, now):
        released += found
    return released


def test_without_pressure_nobody_waits() -> None:
    gate = admission()
    assert Turn.ADMITTED is enter(gate, expected_ms=100.0).turn
    assert {} == gate.waiting()


def test_under_pressure_requests_wait_until_it_falls() -> None:
    gate = admission()
    ticket = enter(gate)
    assert (Turn.WAITING, {"m": 1}) == (ticket.turn, gate.waiting())
    assert [] == gate.release(lambda _: 6000.0, 1.0)
    assert [ticket] == gate.release(lambda _: 1000.0, 2.0)
    assert Turn.ADMITTED is ticket.turn
    assert {} == gate.waiting()


def test_nobody_overtakes_those_that_wait() -> None:
    gate = admission()
    enter(gate)
    assert Turn.WAITING is enter(gate, expected_ms=10.0).turn


def test_one_is_released_at_a_time_so_that_it_counts_for_the_next() -> None:
    gate = admission()
    for _ in range(3):
        enter(gate)
    assert 1 == len(gate.release(lambda _: 0.0, 1.0))


def test_a_request_that_cannot_be_in_time_is_told_when_to_come_back() -> None:
    gate = admission()
    ticket = enter(gate, expected_ms=30_500.0)
    assert (Turn.REJECTED, 31.0) == (ticket.turn, ticket.retry_after_s)
    assert "30.5 s" in ticket.reason
    assert Turn.REJECTED is enter(gate, expected_ms=1500.0, deadline=1.0).turn


def test_a_request_with_a_deadline_waits_no_longer_than_that() -> None:
    gate = admission()
    ticket = enter(gate, expected_ms=800.0, deadline=1.0)
    assert Turn.WAITING is ticket.turn
    assert [ticket] == gate.release(lambda _: 800.0, 1.5)
    assert Turn.REJECTED is ticket.turn
    assert {} == gate.waiting()


def test_a_client_that_leaves_frees_its_place_at_once() -> None:
    gate = admission()
    first, second, third = enter(gate), enter(gate), enter(gate, "other")
    gate.leave(first)
    gate.leave(first)
    gate.leave(third)
    assert (Turn.LEFT, {"m": 1}) == (first.turn, gate.waiting())
    gate.leave(second)
    assert {} == gate.waiting()
    assert [] == drain(gate)


def test_higher_priority_goes_first_and_age_makes_up_for_it() -> None:
    gate = admission(wait_s=100.0)
    low = enter(gate, expected_ms=60_000.0)
    high = enter(gate, expected_ms=60_000.0, priority=2)
    assert [high, low] == drain(gate, now=1.0)
    old = enter(gate, expected_ms=60_000.0, now=0.0)
    new = enter(gate, expected_ms=60_000.0, now=31.0, priority=2)
    assert [old, new] == drain(gate, now=31.0)


def test_tenants_take_turns_by_tokens_and_weight() -> None:
    gate = admission(wait_s=1000.0)
    for _ in range(40):
        enter(gate, "big", expected_ms=600_000.0, tokens=4000.0)
        enter(gate, "small", expected_ms=600_000.0, tokens=1000.0)
        enter(gate, "heavy", expected_ms=600_000.0, tokens=1000.0, weight=2.0)
    first = [gate.release(lambda _: 0.0, 1.0)[0] for _ in range(45)]
    tokens = {name: sum(t.tokens for t in first if t.tenant == name) for name in ("big", "small", "heavy")}
    assert tokens["big"] == pytest.approx(tokens["small"], rel=0.4)
    assert tokens["heavy"] == pytest.approx(2 * tokens["small"], rel=0.3)


def test_what_can_be_done_without_is_shed_first() -> None:
    gate = admission()
    turns = [enter(gate, expected_ms=9500.0, priority=-1).turn for _ in range(60)]
    assert turns.count(Turn.REJECTED) > 30
    assert Turn.WAITING is enter(gate, expected_ms=9500.0).turn


def test_a_full_queue_refuses_equals_and_makes_room_for_better() -> None:
    gate = admission(queue=4, tenant_share=1.0)
    waiting = [enter(gate, "a", now=float(n) / 10) for n in range(4)]
    refused = enter(gate, "b", now=1.0)
    assert (Turn.REJECTED, "too many requests wait for the model") == (refused.turn, refused.reason)
    better = enter(gate, "b", now=1.0, priority=1)
    assert Turn.WAITING is better.turn
    assert Turn.REJECTED is waiting[3].turn
    assert waiting[3] in gate.release(lambda _: 6000.0, 1.1)
    assert {"m": 4} == gate.waiting()


def test_one_tenant_cannot_keep_the_others_out() -> None:
    gate = admission(queue=4)
    crowd = [enter(gate, "crowd", now=float(n) / 10) for n in range(4)]
    assert Turn.WAITING is enter(gate, "other", now=1.0).turn
    assert 3 == sum(t.turn is Turn.WAITING for t in crowd)
    assert Turn.REJECTED is enter(gate, "crowd", now=1.0).turn


def test_the_wait_that_is_promised_follows_the_pace_of_the_queue() -> None:
    gate = admission(wait_s=100.0)
    for _ in range(60):
        enter(gate, expected_ms=55_000.0)
    for second in range(40):
        gate.release(lambda _: 0.0, float(second))
    late = enter(gate, expected_ms=99_000.0, now=40.0)
    assert Turn.REJECTED is late.turn
    assert 110.0 < late.retry_after_s <= 120.0

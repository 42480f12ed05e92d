"""Retries are a share of the traffic and a floor: never a storm."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.core.retry import SLOTS, RetryBudget


def spent(budget: RetryBudget, now: float, *, tries: int = 1000) -> int:
    return sum(budget.withdraw(now) for _ in range(tries))


def test_without_traffic_the_floor_of_ten_seconds_may_be_spent_and_no_more() -> None:
    budget = RetryBudget(ratio=0.2, floor_per_s=10.0)
    assert 100 == spent(budget, 5.0)
    assert not budget.withdraw(5.9)


def test_with_a_share_of_a_quarter_four_requests_pay_for_one_retry() -> None:
    budget = RetryBudget(ratio=0.25, floor_per_s=0.0)
    for _ in range(40):
        budget.deposit(1.0)
    assert 10 == spent(budget, 1.5)


def test_what_was_paid_and_what_was_spent_is_forgotten_after_ten_seconds() -> None:
    paid, used = RetryBudget(ratio=1.0, floor_per_s=0.0), RetryBudget(ratio=0.0, floor_per_s=1.0)
    paid.deposit(0.0)
    assert (1.0, 0.0) == (paid.balance(SLOTS - 0.1), paid.balance(float(SLOTS)))
    assert 10 == spent(used, 3.0)
    assert (0.0, 10.0) == (used.balance(SLOTS + 2.9), used.balance(SLOTS + 3.0))


def test_a_clock_that_steps_back_gives_no_retry_twice() -> None:
    budget = RetryBudget(ratio=0.0, floor_per_s=1.0)
    assert 10 == spent(budget, 50.0)
    assert 0 == spent(budget, 49.0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 3.0)), max_size=200))
def test_in_any_ten_seconds_retries_are_no_more_than_the_floor_and_the_share(steps: list[tuple[bool, float]]) -> None:
    budget, now = RetryBudget(ratio=0.5, floor_per_s=0.3), 0.0
    paid: list[float] = []
    taken: list[float] = []
    for pays, pause_s in steps:
        now += pause_s
        if pays:
            budget.deposit(now)
            paid.append(now)
        elif budget.withdraw(now):
            taken.append(now)
        lately = [at for at in taken if int(at) > int(now) - SLOTS]
        assert len(lately) <= 0.3 * SLOTS + 0.5 * len([at for at in paid if int(at) > int(now) - 2 * SLOTS])

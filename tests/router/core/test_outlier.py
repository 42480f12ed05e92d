from __future__ import annotations

from router.core.constants import Constants
from router.core.model import Ending
from router.core.outlier import Health, Standing


def fail(health: Health, times: int, *, now: float = 0.0, mean: float = 1.0) -> None:
    for _ in range(times):
        health.outcome(Ending.FAILED, now, mean_success=mean)


def succeed(health: Health, times: int = 1, *, now: float = 0.0) -> None:
    for _ in range(times):
        health.outcome(Ending.COMPLETE, now, mean_success=1.0)


def test_five_failures_in_a_row_eject() -> None:
    health = Health(Constants())
    fail(health, 4)
    succeed(health)
    fail(health, 4)
    assert Standing.SERVING is health.at(0.0)
    fail(health, 1)
    assert Standing.EJECTED is health.at(0.0)


def test_ejection_ends_in_probation_and_successes_end_that() -> None:
    health = Health(Constants())
    fail(health, 5)
    assert Standing.EJECTED is health.at(9.9)
    assert Standing.PROBATION is health.at(10.0)
    succeed(health, 2, now=11.0)
    assert Standing.PROBATION is health.at(11.0)
    succeed(health, 1, now=11.0)
    assert Standing.SERVING is health.at(11.0)


def test_a_failure_on_probation_ejects_for_twice_as_long() -> None:
    health = Health(Constants())
    fail(health, 5)
    health.at(10.0)
    fail(health, 1, now=10.0)
    assert Standing.EJECTED is health.at(29.9)
    assert Standing.PROBATION is health.at(30.0)


def test_requests_that_fail_after_the_ejection_do_not_prolong_it() -> None:
    health = Health(Constants())
    fail(health, 20)
    assert Standing.PROBATION is health.at(10.0)


def test_a_success_rate_far_below_the_others_ejects() -> None:
    health = Health(Constants())
    for _ in range(20):
        fail(health, 3, mean=0.95)
        succeed(health)
    assert Standing.EJECTED is health.at(0.0)
    alone = Health(Constants())
    for _ in range(20):
        fail(alone, 3, mean=alone.success)
        succeed(alone)
    assert Standing.SERVING is alone.at(0.0)


def test_a_failure_costs_time_that_doubles_and_fades() -> None:
    health = Health(Constants())
    assert 0.0 == health.penalty_ms(0.0)
    fail(health, 1)
    once = health.penalty_ms(0.0)
    fail(health, 1)
    twice = health.penalty_ms(0.0)
    assert 1000.0 == once
    assert twice > 2 * once
    assert twice / 2 == health.penalty_ms(10.0)
    succeed(health, now=10.0)
    assert twice / 4 == health.penalty_ms(10.0)
    assert 0.0 == health.penalty_ms(1000.0)
    fail(health, 50)
    assert 30_000.0 == health.penalty_ms(0.0)


def test_a_refusal_costs_time_but_is_no_failure_and_a_cancelled_request_is_nothing() -> None:
    health = Health(Constants())
    for _ in range(10):
        health.outcome(Ending.CANCELLED, 0.0, mean_success=1.0)
    assert 0.0 == health.penalty_ms(0.0)
    for _ in range(10):
        health.outcome(Ending.REFUSED, 0.0, mean_success=1.0)
    assert 5000.0 == health.penalty_ms(0.0)
    assert Standing.SERVING is health.at(0.0)
    health.outcome(Ending.REJECTED, 0.0, mean_success=1.0)
    assert 1 == health.outcomes

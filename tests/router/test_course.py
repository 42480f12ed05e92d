"""How long an attempt waits for a silent engine, as far as it depends on what else there is."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace
from typing import Any, cast

import pytest

from router.core import stall
from router.core.stall import Heard
from router.course import Course
from router.fleet.view import ready_beside
from tests.router.core.fleets import fleet, replica
from wire.records import ModelState

CAP_S = 60.0
STANDS_STILL = Heard(generation=1, scraped_age_s=9.0, running=1)
REPLACED = Heard(generation=2)


def patience_s(heard: Heard, *, elsewhere: bool) -> float:
    """With an engine that has not said anything for five seconds."""
    attempt = SimpleNamespace(first_token=0.0, started=0.0)
    job = SimpleNamespace(
        silence_limits_s=lambda _: (inf, CAP_S),
        replica=SimpleNamespace(replica="a", generation=1),
        decision=SimpleNamespace(expected_p90_ms=100.0),
        editor=None,
    )
    parts = (SimpleNamespace(), SimpleNamespace(), job, lambda: None, lambda *_: heard)
    course = Course(*cast(Any, parts), lambda _: elsewhere)
    return course.patience_s(cast(Any, SimpleNamespace(attempt=attempt, quiet_since=0.0)), 5.0)


def test_a_still_engine_is_left_before_the_first_token_where_another_could_answer() -> None:
    assert stall.FIRST_S == patience_s(STANDS_STILL, elsewhere=True)


def test_a_still_engine_that_nobody_could_stand_in_for_is_waited_for_as_long_as_policy_allows() -> None:
    assert CAP_S == patience_s(STANDS_STILL, elsewhere=False)


def test_an_engine_that_was_replaced_is_not_waited_for_whatever_else_there_is() -> None:
    assert stall.LEAST_S == patience_s(REPLACED, elsewhere=False)


@pytest.mark.parametrize(
    ("others", "beside"),
    [
        ([], False),
        ([replica("b")], True),
        ([replica("b"), replica("c")], True),
        ([replica("b", ModelState.LOADING)], False),
        ([replica("b", model="other")], False),
        ([replica("tried")], False),
    ],
)
def test_beside_a_tried_replica_counts_what_is_ready_and_not_tried(others, beside) -> None:  # type: ignore[no-untyped-def]
    found = fleet(replica("a"), *others)
    assert beside == ready_beside(found, found.replicas["a"], {"a", "tried"})


def test_a_replica_on_a_draining_node_stands_in_for_nobody() -> None:
    found = fleet(replica("a"), replica("b"), draining=("n-b",))
    assert not ready_beside(found, found.replicas["a"], {"a"})

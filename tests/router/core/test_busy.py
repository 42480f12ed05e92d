"""Replicas that asked to be left alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.core.busy import LIMIT_S, Busy


def test_a_replica_is_left_alone_for_the_time_it_named_and_no_longer() -> None:
    busy = Busy()
    busy.note("m", "a", 7.0, 100.0)
    assert ({"a"}, set(), set()) == tuple(set(busy.replicas("m", now)) for now in (106.9, 107.0, 200.0))


def test_it_is_left_alone_for_the_model_it_spoke_of_only() -> None:
    busy = Busy()
    busy.note("m", "a", 7.0, 100.0)
    assert (0, 0.0) == (len(busy.replicas("other", 101.0)), busy.least_s("other", 101.0))


def test_nobody_is_lost_for_longer_than_the_limit() -> None:
    busy = Busy()
    busy.note("m", "a", 3600.0, 100.0)
    assert (LIMIT_S, 0) == (busy.least_s("m", 100.0), len(busy.replicas("m", 100.0 + LIMIT_S)))


def test_without_a_time_nothing_is_noted_and_the_last_word_counts() -> None:
    busy = Busy()
    busy.note("m", "a", 0.0, 100.0)
    assert 0 == len(busy.replicas("m", 100.0))
    busy.note("m", "a", 20.0, 100.0)
    busy.note("m", "a", 2.0, 101.0)
    assert 2.0 == busy.least_s("m", 101.0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100), st.floats(0, 50))), st.floats(0, 200))
def test_the_least_time_is_that_of_one_that_is_busy_and_when_it_is_over_that_one_is_free(
    notes: list[tuple[str, float, float]], now: float
) -> None:
    busy = Busy()
    for replica, retry_after_s, at in sorted(notes, key=lambda note: note[2]):
        busy.note("m", replica, retry_after_s, at)
    before = set(busy.replicas("m", now))
    least_s = busy.least_s("m", now)
    assert bool(before) == (least_s > 0.0)
    assert not before or set(busy.replicas("m", now + least_s + 1e-6)) < before

"""Patience with a silent engine: bounded, and never less for better signs of life."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.core.stall import LEAST_S, Heard, Sign, first_limit_s, interval_s, sign, stream_limit_s

seconds = st.floats(0.0, 1e4, allow_nan=False)
counts = st.integers(0, 100)
signs = st.sampled_from(list(Sign))
ORDER = (Sign.GONE, Sign.STILL, Sign.ALIVE, Sign.QUEUED)


@given(signs, seconds, seconds)
def test_nobody_waits_longer_than_the_policy_nor_less_than_reports_need(
    which: Sign, interval: float, cap: float
) -> None:
    for limit in (
        stream_limit_s(which, interval_s=interval, cap_s=cap),
        first_limit_s(which, expected_s=interval, cap_s=cap),
    ):
        assert min(cap, LEAST_S) <= limit <= cap


@given(seconds, seconds)
def test_better_signs_of_life_never_mean_less_patience(interval: float, cap: float) -> None:
    limits = [stream_limit_s(which, interval_s=interval, cap_s=cap) for which in ORDER]
    assert sorted(limits) == limits
    assert limits[1] == stream_limit_s(Sign.SILENT, interval_s=interval, cap_s=cap)


@given(signs, seconds, seconds, seconds)
def test_a_slower_stream_is_never_given_less_time(which: Sign, interval: float, more: float, cap: float) -> None:
    slower = stream_limit_s(which, interval_s=interval + more, cap_s=cap)
    assert slower >= stream_limit_s(which, interval_s=interval, cap_s=cap)


heard = st.builds(
    Heard,
    generation=counts,
    age_s=seconds,
    scraped_age_s=seconds,
    idle_s=seconds,
    running=counts,
    waiting=counts,
    prefill_s=seconds,
)


@given(heard, counts, seconds)
def test_an_engine_that_is_heard_to_make_tokens_is_never_taken_for_dead(
    report: Heard, generation: int, s: float
) -> None:
    healthy = Heard(generation=generation, age_s=0.3, scraped_age_s=0.6, idle_s=0.3, running=1, waiting=report.waiting)
    assert sign(healthy, generation=generation, silent_s=s) in (Sign.ALIVE, Sign.QUEUED)


@given(heard, counts, seconds, seconds)
def test_longer_silence_never_makes_an_engine_look_more_alive(
    report: Heard, generation: int, silent: float, more: float
) -> None:
    rank = {which: place for place, which in enumerate((*ORDER[:2], Sign.LEFT, Sign.SILENT, *ORDER[2:]))}
    first = sign(report, generation=generation, silent_s=silent)
    later = sign(report, generation=generation, silent_s=silent + more)
    assert rank[later] <= rank[first]


@given(st.integers(0, 10_000), seconds)
def test_a_pace_is_a_mean_of_what_was_seen_and_a_guess_before(events: int, elapsed: float) -> None:
    assert 0.0 <= interval_s(events, elapsed) <= max(0.1, elapsed)

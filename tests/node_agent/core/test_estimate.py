from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node_agent.core.estimate import Estimate


def test_before_the_first_start_the_prior_is_promised() -> None:
    assert 40 == Estimate({}).remaining_s("m", prior_s=40)
    assert 30 == Estimate({}).remaining_s("m", prior_s=40, elapsed_s=10)


def test_the_first_start_replaces_the_prior_and_later_ones_count_three_tenths() -> None:
    estimate = Estimate({})
    estimate.observe("m", 20)
    estimate.observe("m", 30)
    assert 23 == estimate.remaining_s("m", prior_s=40)


def test_a_start_that_is_late_is_never_promised_for_now() -> None:
    assert 20 == Estimate({"m": 40.0}).remaining_s("m", prior_s=1, elapsed_s=200)


@given(st.lists(st.floats(0.1, 1000), min_size=1), st.floats(0, 1000))
def test_an_estimate_stays_among_what_was_seen(seen: list[float], elapsed: float) -> None:
    estimate = Estimate({})
    for seconds in seen:
        estimate.observe("m", seconds)
    assert min(seen) - 1e-6 <= estimate.learned["m"] <= max(seen) + 1e-6
    assert estimate.remaining_s("m", prior_s=1, elapsed_s=elapsed) >= 0

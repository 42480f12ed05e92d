"""Hedges are rare, late and worth it, whatever is believed of the fleet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.core.hedge import (
    LATE_MS,
    LATE_P90,
    UNCACHED_LIMIT_TOKENS,
    HedgeBudget,
    late_ms,
    prefill_load,
    remaining_ms,
    worth,
)
from router.core.model import Decision, Verdict
from router.core.stall import Heard

times = st.floats(0.0, 1e6)
shares = st.floats(0.0, 1.0)
decisions = st.builds(
    Decision,
    verdict=st.sampled_from(list(Verdict)),
    expected_ttft_ms=times,
    expected_p90_ms=times,
    uncached_tokens=st.integers(0, 10_000),
)


@given(decisions, decisions, times, shares)
def test_every_hedge_keeps_all_of_its_conditions(first: Decision, other: Decision, age_ms: float, load: float) -> None:
    if worth(first, other, age_ms=age_ms, prefill_load=load):
        assert Verdict.SEND is other.verdict
        assert age_ms > max(LATE_P90 * first.expected_p90_ms, LATE_MS)
        assert other.expected_ttft_ms < 0.5 * max(first.expected_ttft_ms - age_ms, 0.3 * age_ms)
        assert other.uncached_tokens <= UNCACHED_LIMIT_TOKENS
        assert load < 0.7


@given(decisions, times, shares)
def test_a_free_replica_is_worth_it_for_whoever_is_late_while_the_fleet_has_room(
    first: Decision, more_ms: float, load: float
) -> None:
    free = Decision(verdict=Verdict.SEND, expected_ttft_ms=1.0, uncached_tokens=1)
    age_ms = late_ms(first.expected_p90_ms) + 1.0 + more_ms
    assert (load < 0.7) == worth(first, free, age_ms=age_ms, prefill_load=load)


@given(decisions, decisions, times, shares, times, times)
def test_an_answer_that_comes_whole_is_never_hedged_sooner_than_a_stream(
    first: Decision, other: Decision, age_ms: float, load: float, own_ms: float, others_ms: float
) -> None:
    whole = worth(first, other, age_ms=age_ms, prefill_load=load, decode_ms=(own_ms, others_ms))
    assert not whole or age_ms > late_ms(first.expected_p90_ms)
    assert late_ms(first.expected_p90_ms, decode_ms=own_ms) >= late_ms(first.expected_p90_ms)


@given(times, times)
def test_something_is_always_left_of_what_has_not_come(expected_ms: float, age_ms: float) -> None:
    assert remaining_ms(expected_ms, age_ms) >= max(expected_ms - age_ms, 0.0)


@given(st.floats(0.0, 1.0), st.lists(st.booleans(), max_size=300))
def test_no_history_spends_more_than_its_share_and_one(ratio: float, wants: list[bool]) -> None:
    budget = HedgeBudget(ratio=ratio)
    hedges = 0
    for wanted in wants:
        budget.deposit()
        hedges += wanted and budget.withdraw()
    assert hedges <= 1.0 + ratio * len(wants) + 1e-9


@given(st.integers(0, 5000))
def test_a_quiet_hour_pays_for_no_storm(quiet: int) -> None:
    budget = HedgeBudget()
    for _ in range(quiet):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(100)) <= 10


reports = st.none() | st.builds(Heard, age_s=st.floats(0, 3), waiting=st.integers(0, 2), prefill_s=st.floats(0, 2))


@given(st.lists(reports))
def test_the_prefill_load_is_a_share_of_those_heard_of_lately(heard: list[Heard | None]) -> None:
    load = prefill_load(heard)
    assert 0.0 <= load <= 1.0
    assert any(said is not None and said.age_s <= 1.0 for said in heard) or 0.0 == load

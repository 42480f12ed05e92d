"""How long a silent engine is waited for, by what is known of it."""

from __future__ import annotations

import pytest

from router.core.stall import (
    ADMITTED_S,
    ALIVE_S,
    FIRST_S,
    LEAST_S,
    NAMED_S,
    QUEUED_S,
    Heard,
    Sign,
    first_limit_s,
    sign,
    stream_limit_s,
)
from tests.router.core.fleets import dispatcher, load, replica, report

BUSY = Heard(generation=1, scraped_age_s=0.2, running=3)


def said(heard: Heard | None, *, generation: int = 1, silent_s: float = 3.0) -> Sign:
    return sign(heard, generation=generation, silent_s=silent_s)


def test_an_engine_without_an_agent_or_with_a_late_one_is_silent() -> None:
    assert Sign.SILENT is said(None)
    assert Sign.SILENT is said(Heard(generation=1, age_s=1.5, running=3))


def test_a_newer_engine_in_its_place_says_that_the_old_one_is_gone() -> None:
    assert Sign.GONE is said(Heard(generation=2, running=3))
    assert Sign.ALIVE is said(BUSY, generation=0)


def test_work_without_a_token_or_a_scrape_without_an_answer_is_standing_still() -> None:
    assert Sign.STILL is said(Heard(generation=1, idle_s=1.6, running=3))
    assert Sign.STILL is said(Heard(generation=1, scraped_age_s=1.6, running=3))


def test_a_long_prefill_may_keep_every_stream_waiting_and_a_frozen_one_does_not_do_so_for_ever() -> None:
    assert Sign.ALIVE is said(Heard(generation=1, idle_s=4.0, running=3, prefill_s=3.0))
    assert Sign.STILL is said(Heard(generation=1, idle_s=12.0, running=3, prefill_s=900.0))


def test_figures_without_any_request_that_are_younger_than_our_last_event_do_not_contain_ours() -> None:
    assert Sign.STILL is said(Heard(generation=1, scraped_age_s=0.2), silent_s=2.0)
    assert Sign.ALIVE is said(Heard(generation=1, scraped_age_s=1.2), silent_s=1.6)


def test_an_engine_that_goes_on_for_others_is_waited_for_longer_and_longest_where_requests_wait() -> None:
    assert Sign.ALIVE is said(BUSY)
    assert Sign.QUEUED is said(Heard(generation=1, running=3, waiting=1))
    limits = [stream_limit_s(s, interval_s=0.02, cap_s=60.0) for s in (Sign.STILL, Sign.ALIVE, Sign.QUEUED)]
    assert [LEAST_S, ALIVE_S, QUEUED_S] == limits


def test_a_stream_whose_every_token_would_be_named_is_missed_sooner_unless_it_may_have_been_preempted() -> None:
    assert NAMED_S == stream_limit_s(Sign.ALIVE, interval_s=0.02, cap_s=60.0, named=True)
    assert QUEUED_S == stream_limit_s(Sign.QUEUED, interval_s=0.02, cap_s=60.0, named=True)


@pytest.mark.parametrize("which", list(Sign))
def test_a_slow_stream_is_given_time_in_its_own_measure_and_never_more_than_the_policy_allows(which: Sign) -> None:
    assert 60.0 == stream_limit_s(which, interval_s=3.1, cap_s=60.0) or which is Sign.GONE
    assert 0.5 == stream_limit_s(which, interval_s=0.02, cap_s=0.5)


def test_the_first_token_is_given_up_only_on_an_engine_known_to_stand_still_or_to_be_gone() -> None:
    assert FIRST_S == first_limit_s(Sign.STILL, expected_s=0.1, cap_s=600.0)
    assert 40.0 == first_limit_s(Sign.STILL, expected_s=10.0, cap_s=600.0)
    assert LEAST_S == first_limit_s(Sign.GONE, expected_s=10.0, cap_s=600.0)
    assert FIRST_S == first_limit_s(Sign.LEFT, expected_s=0.1, cap_s=600.0)
    assert [600.0] * 2 == [first_limit_s(s, expected_s=0.1, cap_s=600.0) for s in (Sign.QUEUED, Sign.SILENT)]


def test_an_engine_where_nobody_waits_has_lost_a_request_that_shows_no_token_and_a_whole_answer_shows_none() -> None:
    assert ADMITTED_S == first_limit_s(Sign.ALIVE, expected_s=0.1, cap_s=600.0)
    assert 600.0 == first_limit_s(Sign.ALIVE, expected_s=0.1, cap_s=600.0, streams=False)


def test_what_was_heard_grows_older_and_ends_with_its_agents_stream() -> None:
    core = dispatcher(replica("a"))
    assert core.heard("a", 1.0) is None
    core.report(report(load("a", generation=1, idle_s=0.5, scraped_age_s=0.25, running=2)), 10.0)
    later = core.heard("a", 11.0)
    assert later is not None
    assert (1, 2, 1.0, 1.25, 1.5) == (later.generation, later.running, later.age_s, later.scraped_age_s, later.idle_s)
    core.node_lost("n-a", 12.0)
    assert core.heard("a", 12.0) is None
    assert Heard(left=True) == core.heard("nobody", 12.0)
    assert Sign.LEFT is said(core.heard("nobody", 12.0))

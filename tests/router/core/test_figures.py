"""The numbers of a decision: bounds of what is believed, and when they are made anew."""

from __future__ import annotations

from router.core.constants import Constants
from router.core.dispatch import CoreDispatcher
from router.core.model import Ending
from router.core.score import HEALTH, KV_SHARE, READY, ROOM, Column
from tests.router.core.fleets import dispatcher, load, replica, report, shape


def only(core: CoreDispatcher, now: float) -> Column:
    """The figures of the only replica, as a decision at that time sees them."""
    core.pick(shape(), now=now)
    return core._belief.groups["m", False].columns[0]


def test_however_many_answers_decode_a_step_is_taken_to_have_room_for_some_of_a_prompt() -> None:
    core = dispatcher(replica("a"))
    core.report(report(load("a", running=100_000)), 0.0)
    assert 1.0 / Constants().min_step_tokens == only(core, 0.0)[ROOM]


def test_no_more_than_all_of_the_memory_is_in_use() -> None:
    core = dispatcher(replica("a", kv_capacity_tokens=1000))
    asked = shape(prompt=bytes(40_000))
    core.begin(core.pick(asked, now=0.0), asked, 0.0).first_token(0.1)
    assert 1.0 == only(core, 0.1)[KV_SHARE]


def test_a_request_on_an_engine_whose_agent_fell_silent_shows_the_silence() -> None:
    core = dispatcher(replica("a"))
    core.report(report(load("a", running=3)), 0.0)
    core.begin(core.pick(shape(), now=0.1), shape(), 0.1)
    assert 0.0 == only(core, 0.2)[HEALTH]
    core.begin(core.pick(shape(), now=0.7), shape(), 0.7)
    assert Constants().suspect_ms == only(core, 0.9)[HEALTH]


def test_a_failure_is_seen_by_the_next_decision_and_forgotten_with_time() -> None:
    core = dispatcher(replica("a"))
    core.report(report(load("a")), 0.0)
    assert 0.0 == only(core, 0.0)[HEALTH]
    core.begin(core.pick(shape(), now=0.0), shape(), 0.0).end(Ending.FAILED, 0.0)
    assert Constants().failure_ms == only(core, 0.0)[HEALTH]
    core.begin(core.pick(shape(), now=10.0), shape(), 10.0)
    assert 0.5 * Constants().failure_ms + Constants().suspect_ms == only(core, 10.0)[HEALTH]


def test_an_idle_engine_that_is_scraped_rarely_is_ready_as_long_as_its_agent_speaks() -> None:
    core = dispatcher(replica("a"))
    core.report(report(load("a", scraped_age_s=1.0)), 0.0)
    column = only(core, 0.1)
    assert (1.0, 0.0) == (column[READY], column[HEALTH])

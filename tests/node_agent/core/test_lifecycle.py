"""One replica's life, told in events; time is an argument."""

from __future__ import annotations

import pytest

from node_agent.core.events import (
    Adopted,
    CameUp,
    Event,
    Exited,
    Goal,
    Hold,
    Instruction,
    Kill,
    PutToSleep,
    Release,
    Retiring,
    Say,
    Sick,
    Slept,
    Start,
    Stop,
    Streams,
    Tick,
    WakeUp,
    Want,
    Woke,
)
from node_agent.core.lifecycle import PASSING_S, Lifecycle, Limits, Phase
from wire.records import ModelState

LIMITS = Limits(backoff_base_s=1, backoff_cap_s=8, crash_limit=4, crash_window_s=100, start_limit_s=60, news_s=1)


class Story:
    """A lifecycle with a clock; what it said is left out of the instructions."""

    def __init__(self, goal: Goal = Goal.READY) -> None:
        self.now = 1000.0
        self.life = Lifecycle(goal=goal, limits=LIMITS, now=self.now)
        self.said: list[str] = []

    def tell(self, event: Event, *, after_s: float = 0.0) -> list[Instruction]:
        self.now += after_s
        instructions = self.life.handle(event, self.now)
        self.said += [one.text for one in instructions if isinstance(one, Say)]
        return [one for one in instructions if not isinstance(one, Say)]

    def ready(self) -> Story:
        self.tell(Tick())
        self.tell(CameUp(self.life.generation))
        return self


def test_a_wanted_engine_is_started_and_ready_when_it_has_come_up() -> None:
    story = Story()
    assert ModelState.ON_DISK is story.life.state
    assert [Start(1)] == story.tell(Tick())
    assert ModelState.LOADING is story.life.state
    assert [] == story.tell(CameUp(1))
    assert ModelState.READY is story.life.state


def test_nothing_is_started_that_nobody_wants() -> None:
    story = Story(Goal.ON_DISK)
    assert [] == story.tell(Tick(), after_s=1000)
    assert ModelState.ON_DISK is story.life.state
    assert [Start(1)] == story.tell(Want(Goal.READY))


def test_weights_that_are_not_here_show_as_absent() -> None:
    story = Story(Goal.ON_DISK)
    story.life.on_disk = False
    assert ModelState.ABSENT is story.life.state


def test_a_crashed_engine_is_started_again_after_a_back_off_with_a_new_generation() -> None:
    story = Story().ready()
    assert [] == story.tell(Exited(1, "killed by signal 9"))
    assert ModelState.LOADING is story.life.state
    assert [] == story.tell(Tick(), after_s=0.9)
    assert [Start(2)] == story.tell(Tick(), after_s=0.1)
    assert 1 == story.life.restarts


def test_the_back_off_doubles_up_to_its_cap() -> None:
    life = Story().life
    assert [1, 2, 4, 8, 8] == [life.backoff_s(crashes) for crashes in (1, 2, 3, 4, 500)]


def test_after_repeated_crashes_it_gives_up_and_says_so() -> None:
    story = Story()
    story.tell(Tick())
    for crash in range(1, 5):
        story.tell(Exited(crash, "exited with code 1"))
        story.tell(Tick(), after_s=8)
    assert ModelState.FAILED is story.life.state
    assert "gave up after 4 crashes" in story.said[-1]
    assert "exited with code 1" in story.life.detail
    assert [] == story.tell(Tick(), after_s=10_000)


def test_a_host_that_cannot_start_it_for_a_want_of_its_own_tries_until_it_can() -> None:
    story = Story()
    assert [Start(1)] == story.tell(Tick())
    for generation in range(1, 50):
        story.tell(Exited(generation, "cannot start: Too many open files", passing=True))
        assert ModelState.LOADING is story.life.state
        assert [Start(generation + 1)] == story.tell(Tick(), after_s=PASSING_S)
    assert "no crash of its own" in story.said[-1]


def test_a_failed_replica_that_is_loaded_again_starts_with_a_clean_slate() -> None:
    story = Story()
    story.tell(Tick())
    for crash in range(1, 5):
        story.tell(Exited(crash, "exited with code 1"))
        story.tell(Tick(), after_s=8)
    assert [Start(5)] == story.tell(Want(Goal.READY))
    story.tell(Exited(5, "exited with code 1"))
    assert ModelState.LOADING is story.life.state


def test_crashes_long_ago_do_not_count() -> None:
    story = Story().ready()
    for generation in range(1, 20):
        story.tell(Exited(generation, "killed by signal 9"), after_s=101)
        assert [Start(generation + 1)] == story.tell(Tick(), after_s=1)
        story.tell(CameUp(generation + 1))
    assert ModelState.READY is story.life.state


def test_an_engine_that_does_not_come_up_in_time_is_killed_and_counts_as_a_crash() -> None:
    story = Story()
    story.tell(Tick())
    assert 60 == story.life.due - story.now  # type: ignore[operator]
    assert [Kill(1)] == story.tell(Tick(), after_s=60)
    story.tell(Exited(1, "killed by signal 9"))
    assert "was not ready after 60 s" in story.life.detail
    assert [Start(2)] == story.tell(Tick(), after_s=1)


def test_a_sick_engine_is_killed_and_started_anew() -> None:
    story = Story().ready()
    assert [Kill(1)] == story.tell(Sick(1, "frozen"))
    assert ModelState.LOADING is story.life.state
    assert [] == story.tell(Sick(1, "frozen"))
    story.tell(Exited(1, "killed by signal 9"))
    assert "frozen" in story.life.detail
    assert [Start(2)] == story.tell(Tick(), after_s=1)


def test_news_of_an_older_engine_is_ignored() -> None:
    story = Story().ready()
    story.tell(Exited(1, "killed by signal 9"))
    story.tell(Tick(), after_s=1)
    for late in (CameUp(1), Exited(1, "again"), Sick(1, "frozen"), Streams(1, 0, story.now)):
        assert [] == story.tell(late)
    assert Phase.STARTING is story.life.phase


def test_unloading_waits_for_the_news_to_travel_and_for_streams_to_end() -> None:
    story = Story().ready()
    story.tell(Want(Goal.ON_DISK, limit_s=30))
    assert ModelState.DRAINING is story.life.state
    assert [] == story.tell(Streams(1, 0, began=story.now)), "routers may not have heard yet"
    assert [] == story.tell(Streams(1, 2, began=story.now + 1), after_s=1)
    assert [Stop(1)] == story.tell(Streams(1, 0, began=story.now + 1), after_s=1)
    story.tell(Exited(1, "exited with code 0"))
    assert ModelState.ON_DISK is story.life.state
    assert [] == story.tell(Tick(), after_s=100)


def test_streams_that_outlast_the_limit_are_cut() -> None:
    story = Story().ready()
    story.tell(Want(Goal.ON_DISK, limit_s=30))
    story.tell(Streams(1, 3, began=story.now + 1), after_s=1)
    assert 29 == story.life.due - story.now  # type: ignore[operator]
    assert [Kill(1)] == story.tell(Tick(), after_s=29)
    assert "3 streams did not end in 30 s" in story.said[-1]


def test_a_load_during_a_drain_takes_it_back() -> None:
    story = Story().ready()
    story.tell(Want(Goal.ON_DISK, limit_s=30))
    story.tell(Want(Goal.READY))
    assert ModelState.READY is story.life.state
    assert [] == story.tell(Tick(), after_s=100)


def test_sleep_drains_first_and_waking_serves_again() -> None:
    story = Story().ready()
    assert [] == story.tell(Want(Goal.SLEEPING, level=2, limit_s=30))
    assert ModelState.DRAINING is story.life.state
    assert [PutToSleep(1, 2)] == story.tell(Streams(1, 0, began=story.now + 1), after_s=1)
    story.tell(Slept(1))
    assert ModelState.SLEEPING is story.life.state
    assert [WakeUp(1)] == story.tell(Want(Goal.READY))
    assert ModelState.LOADING is story.life.state
    story.tell(Woke(1))
    assert ModelState.READY is story.life.state
    assert 1 == story.life.generation, "a nap is no restart"


def test_an_engine_that_cannot_sleep_goes_on_serving() -> None:
    story = Story().ready()
    story.tell(Want(Goal.SLEEPING))
    story.tell(Streams(1, 0, began=story.now + 1), after_s=1)
    assert [] == story.tell(Slept(1, error="404"))
    assert ModelState.READY is story.life.state
    assert "404" in story.life.detail


def test_an_engine_that_does_not_wake_is_replaced() -> None:
    story = Story().ready()
    story.tell(Want(Goal.SLEEPING))
    story.tell(Streams(1, 0, began=story.now + 1), after_s=1)
    story.tell(Slept(1))
    story.tell(Want(Goal.READY))
    assert [Kill(1)] == story.tell(Woke(1, error="time out"))


def test_a_sleeper_that_crashes_is_loaded_and_put_to_sleep_again() -> None:
    story = Story().ready()
    story.tell(Want(Goal.SLEEPING, limit_s=0))
    story.tell(Tick())
    story.tell(Slept(1))
    story.tell(Exited(1, "killed by signal 9"))
    assert [Start(2)] == story.tell(Tick(), after_s=1)
    story.tell(CameUp(2))
    assert [PutToSleep(2, 1)] == story.tell(Tick())


def test_a_drain_without_stop_keeps_the_engine_until_it_is_released() -> None:
    story = Story().ready()
    story.tell(Hold(limit_s=5))
    assert ModelState.DRAINING is story.life.state
    assert not story.life.drained
    story.tell(Streams(1, 0, began=story.now + 1), after_s=1)
    assert story.life.drained
    assert [] == story.tell(Tick(), after_s=100)
    story.tell(Release())
    assert ModelState.READY is story.life.state


def test_a_drain_with_stop_stops_and_a_release_starts_again() -> None:
    story = Story().ready()
    story.tell(Hold(limit_s=5, stop=True))
    assert [Stop(1)] == story.tell(Streams(1, 0, began=story.now + 1), after_s=1)
    story.tell(Exited(1, "exited with code 0"))
    assert [] == story.tell(Tick(), after_s=100)
    assert [Start(2)] == story.tell(Release())


def test_only_a_drain_at_once_asks_routers_to_move_streams_until_it_is_released_or_the_engine_is_gone() -> None:
    story = Story().ready()
    story.tell(Hold(limit_s=5))
    assert not story.life.moving
    story.tell(Hold(limit_s=5, stop=True, moving=True))
    assert story.life.moving
    story.tell(Release())
    assert not story.life.moving
    story.tell(Hold(limit_s=5, stop=True, moving=True))
    story.tell(Exited(1, "exited with code 0"))
    assert not story.life.moving


def test_a_crash_during_a_drain_is_not_restarted_before_the_release() -> None:
    story = Story().ready()
    story.tell(Hold(limit_s=5))
    story.tell(Exited(1, "killed by signal 9"))
    assert ModelState.ON_DISK is story.life.state
    assert story.life.due is None
    assert [] == story.tell(Tick(), after_s=100)
    assert [Start(2)] == story.tell(Release())


def test_an_adopted_engine_keeps_its_generation() -> None:
    story = Story()
    assert [] == story.tell(Adopted(7))
    assert ModelState.LOADING is story.life.state
    story.tell(CameUp(7))
    assert ModelState.READY is story.life.state
    assert 7 == story.life.generation


def test_an_adopted_sleeper_is_left_asleep() -> None:
    story = Story()
    story.tell(Adopted(7))
    assert [] == story.tell(CameUp(7, asleep=True))
    assert ModelState.SLEEPING is story.life.state


def test_an_adopted_engine_of_a_model_on_demand_is_kept() -> None:
    story = Story(Goal.ON_DISK)
    story.tell(Adopted(7))
    story.tell(CameUp(7))
    assert ModelState.READY is story.life.state


def test_a_new_engine_waits_until_the_former_agents_one_is_gone() -> None:
    story = Story()
    assert [] == story.tell(Retiring(7))
    assert [] == story.tell(Tick(), after_s=1)
    assert [Start(8)] == story.tell(Exited(7, "exited with code 0"))
    assert 0 == story.life.restarts


def test_an_engine_that_does_not_stop_is_killed_again_and_again() -> None:
    story = Story().ready()
    story.tell(Hold(limit_s=5, stop=True))
    story.tell(Streams(1, 0, began=story.now + 1), after_s=1)
    for _ in range(3):
        assert [Kill(1)] == story.tell(Tick(), after_s=LIMITS.stop_limit_s)


@pytest.mark.parametrize("goal", list(Goal))
def test_since_tells_when_the_state_the_world_sees_last_changed(goal: Goal) -> None:
    story = Story(goal)
    story.tell(Tick(), after_s=5)
    changed = story.life.since
    story.tell(Tick(), after_s=5)
    assert changed == story.life.since
    assert story.now - (10 if goal is Goal.ON_DISK else 5) == changed

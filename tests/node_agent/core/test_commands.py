"""How far a command has come, and why it will not come further."""

from __future__ import annotations

from node_agent.core.commands import Command, Outcome, outcome
from node_agent.core.events import CameUp, Event, Exited, Goal, Hold, Release, Slept, Streams, Tick, Want
from node_agent.core.lifecycle import Lifecycle, Limits

LIMITS = Limits(news_s=1, crash_limit=1)


def told(*events: Event, now: float = 0.0) -> Lifecycle:
    life = Lifecycle(goal=Goal.READY, limits=LIMITS, now=now)
    life.handle(Tick(), now)
    for event in events:
        life.handle(event, now)
    return life


def seen(command: Command, life: Lifecycle, now: float = 0.0) -> Outcome:
    return outcome(command, life, name="m", now=now)


def test_a_load_is_done_when_the_replica_is_ready() -> None:
    assert not seen(Command.LOAD, told()).done
    assert Outcome(phase="up", done=True) == seen(Command.LOAD, told(CameUp(1)))


def test_a_load_that_failed_says_why() -> None:
    failed = seen(Command.LOAD, told(Exited(1, "no such model")))
    assert failed.done
    assert "m failed: no such model; gave up after 1 crashes" in failed.error


def test_a_command_that_was_overruled_ends() -> None:
    assert "another command wants m to be on_disk now" == seen(Command.LOAD, told(Want(Goal.ON_DISK))).error
    assert "another command wants m to be ready now" == seen(Command.UNLOAD, told(CameUp(1))).error


def test_a_sleep_that_was_refused_by_the_engine_says_so() -> None:
    life = told(CameUp(1), Want(Goal.SLEEPING), Tick())
    life.handle(Slept(1, "404"), 0.0)
    assert "m did not fall asleep: 404; it goes on serving" == seen(Command.SLEEP, life).error


def test_a_drain_counts_what_is_left_and_is_done_at_none() -> None:
    life = told(CameUp(1), Hold(10))
    life.handle(Streams(1, 2, began=1.0), 1.0)
    assert Outcome(phase="draining, 2 streams left") == seen(Command.DRAIN, life, 1.0)
    life.handle(Streams(1, 0, began=2.0), 2.0)
    assert seen(Command.DRAIN, life, 2.0).done


def test_a_drain_that_passes_its_limit_says_how_many_streams_still_run() -> None:
    life = told(CameUp(1), Hold(10))
    life.handle(Streams(1, 2, began=1.0), 1.0)
    assert (
        "m: 2 streams still run; drain again with a longer --limit, or with --stop"
        == seen(Command.DRAIN, life, 10.0).error
    )
    life.handle(Streams(1, 1, began=2.0), 2.0)
    assert "m: 1 stream still runs; drain again" in seen(Command.DRAIN, life, 10.0).error


def test_a_drain_whose_limit_was_shorter_than_a_look_does_not_speak_of_streams() -> None:
    life = told(CameUp(1), Hold(10))
    assert (
        "m: the limit was over before it was seen to be empty; drain again with a longer --limit, or with --stop"
        == seen(Command.DRAIN, life, 10.0).error
    )


def test_a_drain_that_is_taken_back_ends() -> None:
    life = told(CameUp(1), Hold(10), Release())
    assert "m was undrained meanwhile" == seen(Command.DRAIN, life).error
    assert seen(Command.UNDRAIN, life).done


def test_a_drain_with_stop_is_done_when_the_engine_is_gone() -> None:
    life = told(CameUp(1), Hold(10, stop=True))
    assert not seen(Command.DRAIN, life).done
    life.handle(Exited(1, "exited with code 0"), 0.0)
    assert seen(Command.DRAIN, life).done

"""How far a command has come: what List and the progress of Load, Sleep, Drain and the others tell people.

Pure: it reads a lifecycle and says whether what was asked is true by now, can no longer become true, or is on its way.
"""

from __future__ import annotations

import enum

import msgspec

from node_agent.core.events import Goal
from node_agent.core.lifecycle import ALIVE, Lifecycle, Phase


class Command(enum.StrEnum):
    LOAD = "load"
    UNLOAD = "unload"
    SLEEP = "sleep"
    DRAIN = "drain"
    UNDRAIN = "undrain"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    phase: str
    detail: str = ""
    done: bool = False
    error: str = ""
    """With done: why it failed and what would help."""


def outcome(command: Command, life: Lifecycle, *, name: str, now: float) -> Outcome:
    done, error = _judge(command, life, name, now)
    return Outcome(phase=_words(life), detail=life.detail, done=done or bool(error), error=error)


def _words(life: Lifecycle) -> str:
    if life.phase is Phase.UP and life.state != "ready":
        return f"draining, {life.streams} streams left"
    return str(life.phase)


def _judge(command: Command, life: Lifecycle, name: str, now: float) -> tuple[bool, str]:
    match command:
        case Command.LOAD:
            return _loaded(life, name)
        case Command.UNLOAD:
            return life.phase is Phase.OFF, _superseded(life, Goal.ON_DISK, name)
        case Command.SLEEP:
            if life.goal is Goal.READY and life.detail:
                return False, f"{name} did not fall asleep: {life.detail}; it goes on serving"
            return life.phase is Phase.ASLEEP, _failed(life, name) or _superseded(life, Goal.SLEEPING, name)
        case Command.DRAIN:
            return _drained(life, name, now)
        case Command.UNDRAIN:
            return life.held is None, ""


def _loaded(life: Lifecycle, name: str) -> tuple[bool, str]:
    if life.held is not None:
        return False, f"{name} is draining; undrain it first"
    return life.state == "ready", _failed(life, name) or _superseded(life, Goal.READY, name)


def _drained(life: Lifecycle, name: str, now: float) -> tuple[bool, str]:
    if life.held is None:
        return False, f"{name} was undrained meanwhile"
    if life.held.stop:
        return life.phase not in ALIVE, ""
    if not life.drained and life.leave_limit_passed(now):
        return False, f"{name}: {_left(life.streams)}; drain again with a longer --limit, or with --stop"
    return life.drained, ""


def _left(streams: int) -> str:
    """None left is not drained yet: no look has shown it since the replica takes nothing new."""
    match streams:
        case 0:
            return "the limit was over before it was seen to be empty"
        case 1:
            return "1 stream still runs"
        case _:
            return f"{streams} streams still run"


def _failed(life: Lifecycle, name: str) -> str:
    return f"{name} failed: {life.detail}" if life.phase is Phase.FAILED else ""


def _superseded(life: Lifecycle, goal: Goal, name: str) -> str:
    return "" if life.goal is goal else f"another command wants {name} to be {life.goal} now"

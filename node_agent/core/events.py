"""The words between a replica's lifecycle and its shell: wishes and facts in, instructions out. Data only."""

from __future__ import annotations

import enum

import msgspec


class Goal(enum.StrEnum):
    """What the replica should be."""

    READY = "ready"
    SLEEPING = "sleeping"
    ON_DISK = "on_disk"


class Event(msgspec.Struct, frozen=True):
    pass


class Tick(Event, frozen=True):
    """Time has passed; sent at `Lifecycle.due` at the latest."""


class Want(Event, frozen=True):
    goal: Goal
    level: int = 1
    limit_s: float = 0.0
    """How long running streams may go on when the goal takes the engine away."""


class Hold(Event, frozen=True):
    """Drain: take nothing new until `Release`."""

    limit_s: float
    stop: bool = False
    moving: bool = False
    """Routers are to continue the streams elsewhere instead of letting them end."""


class Release(Event, frozen=True):
    pass


class Adopted(Event, frozen=True):
    """An engine of a former agent is alive and wanted; whether it answers is not known yet."""

    generation: int


class Retiring(Event, frozen=True):
    """An engine of a former agent is on its way out."""

    generation: int


class CameUp(Event, frozen=True):
    generation: int
    asleep: bool = False


class Exited(Event, frozen=True):
    """The engine and all its processes are gone, or could not be started."""

    generation: int
    reason: str
    passing: bool = False
    """For a want of the host's (descriptors, memory, disk) that may be over soon: no crash of the engine's."""


class Sick(Event, frozen=True):
    """Alive, but of no use: frozen, or its core died."""

    generation: int
    reason: str


class Streams(Event, frozen=True):
    """A scrape that began at `began` found so many requests running or waiting."""

    generation: int
    count: int
    began: float


class Slept(Event, frozen=True):
    generation: int
    error: str = ""


class Woke(Event, frozen=True):
    generation: int
    error: str = ""


class Instruction(msgspec.Struct, frozen=True):
    pass


class Start(Instruction, frozen=True):
    generation: int


class Stop(Instruction, frozen=True):
    generation: int


class Kill(Instruction, frozen=True):
    generation: int


class PutToSleep(Instruction, frozen=True):
    generation: int
    level: int


class WakeUp(Instruction, frozen=True):
    generation: int


class Say(Instruction, frozen=True):
    text: str
    serious: bool = False

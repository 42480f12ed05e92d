"""What to do with the engines that a former agent left, and whether one more engine fits on this host.

An engine is adopted when all is as it would be had we started it: its keeper lives, its configuration is the wanted
one. One of another configuration is drained and replaced; one whose keeper is gone is killed, because nobody would
notice its end. The shell proves who is who (process id and start time) before it touches anything.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import msgspec


class Fate(enum.StrEnum):
    ADOPT = "adopt"
    RETIRE = "retire"
    """Ask the keeper to drain and stop it; a new engine starts when it is gone."""
    WAIT = "wait"
    """It is stopping already."""
    KILL = "kill"
    """No keeper: kill its processes."""
    FORGET = "forget"
    """Nothing is left of it but its state file."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a state file says, checked against the processes that are there."""

    replica: str
    config_hash: str
    generation: int
    stopping: bool = False
    exited: bool = False
    keeper_alive: bool = False
    engine_alive: bool = False
    """Any process that the state file proves to be the engine's."""


def fates(found: Iterable[Found], wanted: Mapping[str, str]) -> dict[str, Fate]:
    """`wanted` maps replica to the hash of its configuration."""
    return {engine.replica: _fate(engine, wanted.get(engine.replica)) for engine in found}


def _fate(engine: Found, config_hash: str | None) -> Fate:
    if not engine.keeper_alive:
        return Fate.KILL if engine.engine_alive else Fate.FORGET
    if engine.exited:
        return Fate.FORGET
    if engine.stopping:
        return Fate.WAIT
    return Fate.ADOPT if engine.config_hash == config_hash else Fate.RETIRE


class Size(msgspec.Struct, frozen=True, kw_only=True):
    slots: int = 1
    memory_gib: float = 0.0


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What the host has for awake engines; 0 means not limited."""

    slots: int = 0
    memory_gib: float = 0.0


def no_room(capacity: Capacity, awake: Mapping[str, Size], name: str, size: Size) -> str:
    """Why one more engine does not fit beside those that are awake, with the remedy; empty when it does."""
    others = {other: used for other, used in awake.items() if other != name}
    slots = sum(used.slots for used in others.values())
    memory = sum(used.memory_gib for used in others.values())
    remedy = (
        f"sleep or unload one of {', '.join(sorted(others))}" if others else "give the host more, or the model less"
    )
    if capacity.slots and slots + size.slots > capacity.slots:
        return f"{name} needs {size.slots} slots and {capacity.slots - slots} of {capacity.slots} are free; {remedy}"
    if capacity.memory_gib and memory + size.memory_gib > capacity.memory_gib + 1e-9:
        free = capacity.memory_gib - memory
        return f"{name} needs {size.memory_gib:g} GiB and {free:g} of {capacity.memory_gib:g} are free; {remedy}"
    return ""

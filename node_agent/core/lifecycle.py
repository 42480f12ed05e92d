"""The life of one replica: events in, instructions out. It decides when its engine is started, stopped, killed, put to
sleep and woken, when a crash is worth another try and when to give up. It does none of it: `slot.py` does.

Facts about the engine (it came up, it exited, it is quiet) and wishes (what it should be, a drain) both arrive as
events; after each event `_advance` compares the two and says what to do next. So a wish that changes half way, a
crash during a drain or a wake during a sleep need no cases of their own.

An event about an engine carries its generation; one about an older engine is ignored.

Sources: dask's worker state machine (events in, instructions out); vLLM's habits: exit code 0 says nothing, a
sleeping engine aborts what runs, a draining one answers 500, so streams must be gone before either.
"""

from __future__ import annotations

import enum
from collections import deque

import msgspec

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
    WakeUp,
    Want,
    Woke,
)
from wire.records import ModelState


class Phase(enum.StrEnum):
    """What its engine is doing, finer than what the world sees."""

    OFF = "off"
    BACKOFF = "backoff"
    STARTING = "starting"
    UP = "up"
    FALLING_ASLEEP = "falling asleep"
    ASLEEP = "asleep"
    WAKING = "waking"
    STOPPING = "stopping"
    FAILED = "failed"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 30.0
    crash_limit: int = 5
    """Crashes within the window after which the replica is left FAILED until someone loads it again."""
    crash_window_s: float = 300.0
    start_limit_s: float = 1800.0
    stop_limit_s: float = 60.0
    """After this long in STOPPING the engine is killed, and killed again."""
    news_s: float = 0.5
    """Time for DRAINING to reach the routers: an engine that is quiet before then may still be sent something."""


PASSING_S = 2.0
"""Until the next try where the host could not start an engine for a want of its own."""
ALIVE = frozenset({Phase.STARTING, Phase.UP, Phase.FALLING_ASLEEP, Phase.ASLEEP, Phase.WAKING, Phase.STOPPING})
"""Phases with a process."""
ANSWERING = frozenset({Phase.UP, Phase.FALLING_ASLEEP, Phase.ASLEEP, Phase.WAKING})
"""Phases in which the engine's metrics mean something."""


class Lifecycle:
    def __init__(self, *, goal: Goal, limits: Limits, now: float, generation: int = 0, level: int = 1) -> None:
        self.goal, self.level, self.generation = goal, level, generation
        self.phase = Phase.OFF
        self.held: Hold | None = None
        self.on_disk = True
        self.restarts = 0
        self.detail = ""
        self.streams = 0
        self.since = now
        self.phase_since = now
        self._limits = limits
        self._crashes: deque[float] = deque()
        self._sick = ""
        self._adopted = False
        self._leave_limit_s = 0.0
        self._leaving_since: float | None = None
        self._quiet = False
        self._retry_at = self._kill_at = now
        self._out: list[Instruction] = []

    @property
    def state(self) -> ModelState:
        """What the world sees."""
        closing = self.held is not None or self._wanted() is Goal.ON_DISK
        match self.phase:
            case Phase.OFF:
                return ModelState.ON_DISK if self.on_disk else ModelState.ABSENT
            case Phase.FAILED:
                return ModelState.FAILED
            case Phase.ASLEEP if not closing:
                return ModelState.SLEEPING
            case Phase.UP if self._leaving_since is None:
                return ModelState.READY
            case Phase.STARTING | Phase.BACKOFF | Phase.WAKING | Phase.STOPPING if not closing:
                return ModelState.LOADING
            case Phase.BACKOFF:
                return ModelState.ON_DISK
        return ModelState.DRAINING

    @property
    def moving(self) -> bool:
        """Whether what runs here should go on elsewhere."""
        return self.held is not None and self.held.moving and self.phase in ALIVE

    @property
    def due(self) -> float | None:
        """When a Tick is wanted."""
        match self.phase:
            case Phase.BACKOFF if self.held is None:
                return self._retry_at
            case Phase.STARTING:
                return self.phase_since + self._limits.start_limit_s
            case Phase.STOPPING:
                return self._kill_at
            case Phase.UP if self._leaving_since is not None:
                limit = self._leaving_since + self._leave_limit_s
                return limit if self._wanted() is not Goal.READY else None
        return None

    @property
    def drained(self) -> bool:
        """Nothing runs here and nothing new can come."""
        if self.phase is Phase.UP:
            return self._leaving_since is not None and self._quiet
        return self.phase not in (Phase.FALLING_ASLEEP, Phase.STOPPING)

    def leave_limit_passed(self, now: float) -> bool:
        return self._leaving_since is not None and now >= self._leaving_since + self._leave_limit_s

    def handle(self, event: Event, now: float) -> list[Instruction]:
        before = self.state
        if getattr(event, "generation", self.generation) == self.generation or isinstance(event, Adopted | Retiring):
            self._learn(event, now)
            self._advance(now)
        if self.state is not before:
            self.since = now
        out, self._out = self._out, []
        return out

    def _learn(self, event: Event, now: float) -> None:
        match event:
            case Want() | Hold() | Release():
                self._wish(event)
            case Adopted(generation):
                self.generation, self.goal, self._adopted = generation, Goal.READY, True
                self._enter(Phase.STARTING, now, f"adopted the engine of generation {generation}")
            case Retiring(generation):
                self.generation = generation
                self._enter(Phase.STOPPING, now, "stopping an engine of a former agent")
            case CameUp(asleep=asleep) if self.phase is Phase.STARTING:
                if asleep and self._adopted:
                    # Someone put it to sleep for a reason; a new agent does not undo that.
                    self.goal = Goal.SLEEPING
                self._adopted = False
                self._enter(Phase.ASLEEP if asleep else Phase.UP, now)
            case Streams(count=count, began=began) if self.phase is Phase.UP:
                self.streams = count
                told = self._leaving_since is not None and began >= self._leaving_since + self._limits.news_s
                self._quiet = told and count == 0
            case Slept() | Woke():
                self._answered(event, now)
            case Sick(reason=reason) if self.phase in ALIVE - {Phase.STOPPING}:
                self._kill(reason, now)
            case Exited(reason=reason, passing=passing):
                self._exited(reason, now, passing=passing)

    def _wish(self, event: Want | Hold | Release) -> None:
        match event:
            case Want(goal, level, limit_s):
                self.goal, self.level = goal, level
                if self.held is None:
                    self._leave_limit_s = limit_s
                if self.phase is Phase.FAILED:
                    self._crashes.clear()
                    self.phase, self.detail = Phase.OFF, ""
            case Hold(limit_s):
                self.held, self._leave_limit_s = event, limit_s
            case Release():
                self.held = None

    def _answered(self, event: Slept | Woke, now: float) -> None:
        if isinstance(event, Slept) and self.phase is Phase.FALLING_ASLEEP:
            self._enter(Phase.UP if event.error else Phase.ASLEEP, now, event.error)
            if event.error:
                self.goal = Goal.READY
                self._out.append(Say(f"did not fall asleep and goes on serving: {event.error}", serious=True))
        elif isinstance(event, Woke) and self.phase is Phase.WAKING:
            if event.error:
                self._kill(f"did not wake: {event.error}", now)
            else:
                self._enter(Phase.UP, now)

    def _exited(self, reason: str, now: float, *, passing: bool) -> None:
        if self.phase not in ALIVE:
            return
        if passing and self._wanted() is not Goal.ON_DISK:
            self._retry_at = now + PASSING_S
            self._enter(Phase.BACKOFF, now, f"{reason}; no crash of its own, next start in {PASSING_S:.1f} s")
            self._out.append(Say(self.detail, serious=True))
            return
        if self.phase is Phase.STOPPING and not self._sick:
            self._enter(Phase.OFF, now)
            return
        reason, self._sick = self._sick or reason, ""
        self._crashes.append(now)
        while self._crashes[0] <= now - self._limits.crash_window_s:
            self._crashes.popleft()
        crashes = len(self._crashes)
        if self._wanted() is Goal.ON_DISK:
            self._enter(Phase.OFF, now, reason)
            self._out.append(Say(f"{reason}; not wanted any more, left stopped"))
        elif crashes >= self._limits.crash_limit:
            self._enter(
                Phase.FAILED, now, f"{reason}; gave up after {crashes} crashes, load it again once it is mended"
            )
            self._out.append(Say(self.detail, serious=True))
        else:
            delay = self.backoff_s(crashes)
            self._retry_at = now + delay
            self._enter(Phase.BACKOFF, now, f"{reason}; crash {crashes}, next start in {delay:.1f} s")
            self._out.append(Say(self.detail, serious=True))

    def backoff_s(self, crashes: int) -> float:
        return float(min(self._limits.backoff_cap_s, self._limits.backoff_base_s * 2 ** min(crashes - 1, 30)))

    def _wanted(self) -> Goal:
        return Goal.ON_DISK if self.held is not None and self.held.stop else self.goal

    def _advance(self, now: float) -> None:
        wanted = self._wanted()
        match self.phase:
            case Phase.OFF if wanted is not Goal.ON_DISK and self.held is None:
                self._start(now)
            case Phase.BACKOFF if wanted is Goal.ON_DISK:
                self._enter(Phase.OFF, now, self.detail)
            case Phase.BACKOFF if now >= self._retry_at and self.held is None:
                self.restarts += 1
                self._start(now)
            case Phase.STARTING if wanted is Goal.ON_DISK:
                self._stop(now)
            case Phase.STARTING if now >= self.phase_since + self._limits.start_limit_s:
                self._kill(f"was not ready after {self._limits.start_limit_s:g} s", now)
            case Phase.UP:
                self._leave_or_stay(wanted, now)
            case Phase.ASLEEP if wanted is Goal.READY and self.held is None:
                self._enter(Phase.WAKING, now)
                self._out.append(WakeUp(self.generation))
            case Phase.ASLEEP if wanted is Goal.ON_DISK:
                self._stop(now)
            case Phase.STOPPING if now >= self._kill_at:
                self._kill_at = now + self._limits.stop_limit_s
                self._out += [Say("has not stopped in time, killing it", serious=True), Kill(self.generation)]

    def _leave_or_stay(self, wanted: Goal, now: float) -> None:
        if wanted is Goal.READY and self.held is None:
            self._leaving_since, self._quiet = None, False
            return
        if self._leaving_since is None:
            self._leaving_since, self._quiet = now, False
            return
        late = now >= self._leaving_since + self._leave_limit_s
        if not (self._quiet or late) or wanted is Goal.READY:
            return
        if self.streams and not self._quiet:
            self._out.append(Say(f"{self.streams} streams did not end in {self._leave_limit_s:g} s and are cut"))
        if wanted is Goal.SLEEPING:
            self._enter(Phase.FALLING_ASLEEP, now)
            self._out.append(PutToSleep(self.generation, self.level))
        elif self._quiet:
            self._stop(now)
        else:
            self._enter(Phase.STOPPING, now)
            self._out.append(Kill(self.generation))

    def _start(self, now: float) -> None:
        self.generation += 1
        self._enter(Phase.STARTING, now)
        self._out.append(Start(self.generation))

    def _stop(self, now: float) -> None:
        self._enter(Phase.STOPPING, now)
        self._out.append(Stop(self.generation))

    def _kill(self, reason: str, now: float) -> None:
        self._sick = reason
        self._enter(Phase.STOPPING, now, reason)
        self._out += [Say(f"{reason}; killing it", serious=True), Kill(self.generation)]

    def _enter(self, phase: Phase, now: float, detail: str = "") -> None:
        self.phase, self.phase_since, self.detail = phase, now, detail
        self._leaving_since, self._quiet, self.streams = None, False, 0
        self._kill_at = now + self._limits.stop_limit_s

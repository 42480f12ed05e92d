"""One promised replica: its lifecycle, its engine's process, and what is known of both. The shell around
core/lifecycle.py: it carries out instructions and tells the lifecycle what came of them.

It does not look at the engine by itself (scrape.py does) and tells nobody about it but its host (host.py).
"""

from __future__ import annotations

import asyncio
import enum
import errno
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import httpx
import msgspec

from node_agent.core.events import (
    Adopted,
    Event,
    Exited,
    Goal,
    Instruction,
    Kill,
    PutToSleep,
    Retiring,
    Say,
    Slept,
    Start,
    Stop,
    Tick,
    WakeUp,
    Woke,
)
from node_agent.core.health import HealthLimits, Vitals
from node_agent.core.lifecycle import ALIVE, Lifecycle, Limits, Phase
from node_agent.core.metrics import EngineMetrics
from node_agent.engines.base import Engine, StartUp
from node_agent.engines.client import EXHAUSTED, EngineClient, EngineFacts, EngineSilent
from node_agent.engines.ports import Ports
from node_agent.engines.process import EngineState, KeeperOptions, StateDir
from node_agent.engines.running import RunningEngine
from node_agent.memory import Memory
from node_agent.plan import Plan
from node_agent.settings import NodeAgentSettings

logger = logging.getLogger(__name__)

WANTS = EXHAUSTED | {errno.ENOSPC, errno.EDQUOT, errno.EAGAIN}
"""Of the host's own, and perhaps over soon. EAGAIN: no more processes."""


class Shared(msgspec.Struct, frozen=True):
    """What all slots of a host share."""

    settings: NodeAgentSettings
    directory: StateDir
    memory: Memory
    ports: Ports
    http: httpx.AsyncClient
    changed: Callable[[], None]
    clock: Callable[[], float] = time.monotonic


class Way(enum.StrEnum):
    """Of becoming able to serve; each is learned on its own."""

    LOAD = "load"
    WAKE = "wake"


class Slot:
    def __init__(self, plan: Plan, engine: Engine, goal: Goal, shared: Shared) -> None:
        self.plan, self.engine = plan, engine
        self._shared = shared
        settings, now = shared.settings, shared.clock()
        self.life = Lifecycle(goal=goal, limits=_limits(settings, plan), now=now)
        self.life.generation = shared.memory.generation(plan.replica)
        self.life.on_disk = engine.on_disk(plan.model)
        self._health = HealthLimits(frozen_s=settings.frozen_limit_s, silent_s=settings.frozen_limit_s)
        self._running = RunningEngine(shared.directory, plan.replica, self._exited)
        self._events: deque[Event] = deque()
        self._handling = False
        self._poke = asyncio.Event()
        self._calls: asyncio.TaskGroup | None = None
        self._port = 0
        self._adopted = False
        self._forget_engine(now)

    def _forget_engine(self, now: float) -> None:
        """Nothing that was known of an older engine holds for a new one."""
        self.client: EngineClient | None = None
        self.figures: EngineMetrics | None = None
        self.facts = EngineFacts()
        self.vitals = Vitals(self._health, now)
        self.start_up = StartUp()
        self.adapters: tuple[str, ...] = ()
        self.scraped_at = now
        self._under_way_since = now

    # What others ask of it.

    @property
    def address(self) -> str:
        return f"{self._shared.settings.advertise_host}:{self._port}" if self._port else ""

    @property
    def pid(self) -> int:
        state = self._running.state() if self.life.phase in ALIVE else None
        return state.pid if state is not None else 0

    def kill_now(self) -> None:
        self._running.kill()

    def remaining_s(self, way: Way, now: float, *, under_way: bool) -> float:
        """Expected time of a load or wake: what is left of this one, or all of one that would begin now."""
        prior_s = self.engine.wake_prior_s if way is Way.WAKE else self.engine.load_prior_s
        elapsed_s = now - self._under_way_since if under_way else 0.0
        return self._shared.memory.estimate.remaining_s(self._key(way), prior_s=prior_s, elapsed_s=elapsed_s)

    def adopt(self, state: EngineState) -> None:
        self._take_over(state)
        self._adopted = True
        self.client = self._client(state.host, state.port)
        self.tell(Adopted(state.generation))

    def retire(self, state: EngineState, *, drain: bool) -> None:
        """An engine of a former agent that has to go before ours can start."""
        self._take_over(state)
        self.tell(Retiring(state.generation))
        if drain:
            self._running.drain()

    def _take_over(self, state: EngineState) -> None:
        self._port = state.port
        self._shared.ports.keep(self.plan.replica, state.port)
        self._running.adopt(state)

    def came_up(self) -> None:
        """Its clocks of health begin now: nothing before counts as silence."""
        self.vitals = Vitals(self._health, self._shared.clock())

    def tell(self, event: Event) -> None:
        """Handle an event and all that follows from it at once. An event told meanwhile waits its turn."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                before = self.life.phase
                now = self._shared.clock()
                for instruction in self.life.handle(self._events.popleft(), now):
                    self._carry_out(instruction)
                if self.life.phase is not before:
                    self._note_change(before, now)
        finally:
            self._handling = False
        self._poke.set()
        self._shared.changed()

    async def run(self) -> None:
        """Tell the lifecycle the time when it wants to know."""
        try:
            async with asyncio.TaskGroup() as self._calls:
                self.tell(Tick())
                while True:
                    self._poke.clear()
                    due = self.life.due
                    try:
                        async with asyncio.timeout(None if due is None else max(0.0, due - self._shared.clock())):
                            await self._poke.wait()
                    except TimeoutError:
                        self.tell(Tick())
        finally:
            self._calls = None
            self._running.let_go()

    # What the lifecycle asks of it.

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Start(generation):
                self._start(generation)
            case Stop():
                self._running.drain()
            case Kill():
                self._running.kill()
            case PutToSleep(generation, level):
                self._call(self._put_to_sleep(generation, level))
            case WakeUp(generation):
                self._call(self._wake_up(generation))
            case Say(text, serious):
                logger.log(logging.WARNING if serious else logging.INFO, "%s: %s", self.plan.replica, text)

    def _start(self, generation: int) -> None:
        settings, model = self._shared.settings, self.plan.model
        self._forget_engine(self._shared.clock())
        self._adopted = False
        self.life.on_disk = self.engine.on_disk(model)
        if not self._shared.memory.started(self.plan.replica, generation):
            logger.warning("%s: cannot write %s: is the disk full?", self.plan.replica, self._shared.directory.path)
        try:
            self._port = self._shared.ports.take(self.plan.replica)
            launch = self.engine.launch(model, host=settings.bind_host, port=self._port, base_env=os.environ)
            state = EngineState(
                replica=self.plan.replica,
                model=model.name,
                generation=generation,
                config_hash=model.digest,
                host=settings.scrape_host,
                port=self._port,
                phase="running",
            )
            self._running.start(state, launch, _keeper_options(settings, model.drain_s))
        except OSError as error:
            self.tell(Exited(generation, f"cannot start: {error}", passing=error.errno in WANTS))
            return
        self.client = self._client(settings.scrape_host, self._port)
        logger.info("%s: starting generation %d on port %d", self.plan.replica, generation, self._port)

    def _client(self, host: str, port: int) -> EngineClient:
        name = f"[{host}]" if ":" in host else host
        timeout_s = self._shared.settings.scrape_timeout_s
        return EngineClient(self._shared.http, f"http://{name}:{port}", timeout_s=timeout_s)

    def _call(self, call: Coroutine[Any, Any, None]) -> None:
        assert self._calls is not None, "instructions come after run() has begun"
        self._calls.create_task(call)

    async def _put_to_sleep(self, generation: int, level: int) -> None:
        self.tell(Slept(generation, await self._error_of(lambda client: client.sleep(level))))

    async def _wake_up(self, generation: int) -> None:
        self.tell(Woke(generation, await self._error_of(lambda client: client.wake())))

    async def _error_of(self, call: Callable[[EngineClient], Awaitable[None]]) -> str:
        if self.client is None:
            return "the engine is gone"
        try:
            await call(self.client)
        except EngineSilent as error:
            return str(error)
        return ""

    def _exited(self, generation: int, reason: str) -> None:
        self.tell(Exited(generation, reason))

    def _key(self, way: Way) -> str:
        return f"{way}:{self.plan.model.name}:{self.plan.model.digest}"

    def _note_change(self, before: Phase, now: float) -> None:
        after, took_s = self.life.phase, now - self._under_way_since
        if before in (Phase.STARTING, Phase.WAKING) and after is Phase.UP:
            if not self._adopted:
                self._shared.memory.took(self._key(Way.WAKE if before is Phase.WAKING else Way.LOAD), took_s)
            self._adopted = False
            how = "awake" if before is Phase.WAKING else "ready"
            logger.info("%s: %s after %.1f s at %s", self.plan.replica, how, took_s, self.address)
        if after in (Phase.STARTING, Phase.WAKING):
            self._under_way_since = now
        if before in (Phase.WAKING, Phase.FALLING_ASLEEP):
            self.came_up()
        if after not in ALIVE:
            self._forget_engine(now)


def _limits(settings: NodeAgentSettings, plan: Plan) -> Limits:
    return Limits(
        backoff_base_s=settings.backoff_base_s,
        backoff_cap_s=settings.backoff_cap_s,
        crash_limit=settings.crash_limit,
        crash_window_s=settings.crash_window_s,
        start_limit_s=settings.start_limit_s,
        # The keeper kills after the drain time by itself; this is for a keeper that does not.
        stop_limit_s=plan.model.drain_s + 15.0,
        news_s=settings.drain_news_s,
    )


def _keeper_options(settings: NodeAgentSettings, drain_s: float) -> KeeperOptions:
    return KeeperOptions(
        drain_s=drain_s,
        orphan_grace_s=settings.orphan_grace_s,
        log_limit_bytes=int(settings.log_limit_mib * 1024 * 1024),
    )

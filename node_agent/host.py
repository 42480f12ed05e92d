"""All that this host promises: its slots, the engines a former agent left, commands for one replica or all of them.

It knows nothing of gRPC or etcd: server.py and presence.py read it and ask it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping

from node_agent.core.commands import Command, Outcome, outcome
from node_agent.core.events import Event, Goal, Hold, Release, Want
from node_agent.core.lifecycle import ALIVE, Phase
from node_agent.core.reconcile import Capacity, Fate, fates, no_room
from node_agent.core.report import SentBook
from node_agent.engines import process
from node_agent.engines.base import Engine
from node_agent.engines.process import EngineState
from node_agent.notice import Notice
from node_agent.plan import plans
from node_agent.scrape import Scraper
from node_agent.settings import EngineKind, NodeAgentSettings, StartAs
from node_agent.slot import Shared, Slot

logger = logging.getLogger(__name__)

PROGRESS_S = 0.25
MOVE_S = 2.0
"""For routers to continue streams elsewhere, once the news has reached them; what is left then cannot move."""


class Refused(Exception):  # noqa: N818 - the answer to a command
    """What was asked cannot be done; the text says why and what would help."""


class NodeHost:
    def __init__(self, shared: Shared, engines: Mapping[EngineKind, Engine], book: SentBook, changed: Notice) -> None:
        """Raise SettingsError when two models cannot be told apart."""
        self._shared, self.changed = shared, changed
        self.draining = shared.memory.draining
        settings = shared.settings
        self._capacity = Capacity(slots=settings.slots, memory_gib=settings.gpu_memory_gib)
        self.slots: dict[str, Slot] = {}
        self._scrapers: dict[str, Scraper] = {}
        for plan in plans(settings):
            goal = Goal.READY if plan.model.start is StartAs.READY else Goal.ON_DISK
            slot = Slot(plan, engines[plan.model.engine], goal, shared)
            self.slots[plan.replica] = slot
            log_path = shared.directory.log_path(plan.replica)
            self._scrapers[plan.replica] = Scraper(slot, book, settings, log_path=log_path, clock=shared.clock)

    @property
    def settings(self) -> NodeAgentSettings:
        return self._shared.settings

    @property
    def clock(self) -> Callable[[], float]:
        return self._shared.clock

    def log_path(self, replica: str) -> str:
        return str(self._shared.directory.log_path(replica))

    async def run(self) -> None:
        """Take over what a former agent left, then keep every promise until cancelled."""
        self._take_over()
        async with asyncio.TaskGroup() as tasks:
            for replica, slot in self.slots.items():
                tasks.create_task(slot.run(), name=f"slot {replica}")
                tasks.create_task(self._scrapers[replica].run(), name=f"scrape {replica}")
            tasks.create_task(self._put_to_bed(), name="sleepers")

    async def _put_to_bed(self) -> None:
        """Models that start asleep must be loaded once before: one after the other, as far as there is room."""
        for slot in self.slots.values():
            if slot.plan.model.start is not StartAs.SLEEPING or slot.life.phase in ALIVE:
                continue
            if problem := self._no_room(slot):
                logger.warning("%s stays on disk: %s", slot.plan.replica, problem)
                continue
            async for _ in self.follow(Command.SLEEP, self._tell([slot], Want(Goal.SLEEPING))):
                pass

    def _no_room(self, slot: Slot) -> str:
        awake = {name: other.plan.model.size for name, other in self.slots.items() if _occupies(other)}
        return no_room(self._capacity, awake, slot.plan.replica, slot.plan.model.size)

    def _take_over(self) -> None:
        states = self._shared.directory.states()
        wanted = {replica: slot.plan.model.digest for replica, slot in self.slots.items()}
        decided = fates([process.found(state) for state in states], wanted)
        for state in states:
            self._carry_out(decided[state.replica], state)
        for replica, hold in self._shared.memory.held.items():
            if replica in self.slots:
                logger.info("%s: still drained, as it was asked for before this agent started", replica)
                self.slots[replica].tell(hold)

    def _carry_out(self, fate: Fate, state: EngineState) -> None:
        slot = self.slots.get(state.replica)
        if fate is not Fate.FORGET:
            logger.info("%s: %s the engine of a former agent, pid %d", state.replica, fate, state.pid)
        match fate:
            case Fate.ADOPT if slot is not None:
                slot.adopt(state)
            case Fate.RETIRE | Fate.WAIT if slot is not None:
                slot.retire(state, drain=fate is Fate.RETIRE)
            case Fate.RETIRE:
                process.drain(state)
            case Fate.KILL:
                process.kill_group(state)
                self._shared.directory.forget(state.replica)
            case Fate.FORGET:
                self._shared.directory.forget(state.replica)

    def hurry(self, replicas: set[str]) -> None:
        """A router has sent something to them."""
        for replica in replicas & self._scrapers.keys():
            self._scrapers[replica].hurry()

    # Commands. Each returns the slots it is about; `follow` says how far they have come.

    def load(self, replica: str) -> list[Slot]:
        """Load it, or wake it: whatever it takes until it serves."""
        slot = self._slot(replica)
        if slot.life.held is not None:
            raise Refused(f"{replica} is draining; undrain it first")
        if problem := self._no_room(slot):
            raise Refused(problem)
        return self._tell([slot], Want(Goal.READY))

    def unload(self, replica: str) -> list[Slot]:
        return self._tell([self._slot(replica)], Want(Goal.ON_DISK, limit_s=self.settings.drain_limit_s))

    def sleep(self, replica: str, level: int) -> list[Slot]:
        slot = self._slot(replica)
        if not slot.plan.model.sleep:
            raise Refused(f"{replica} cannot sleep: set sleep = true for {slot.plan.model.name} and restart the agent")
        if level not in (0, 1, 2):
            raise Refused(f"there is no sleep level {level}: 1 keeps the weights in host memory, 2 drops them")
        # proto3 cannot tell 0 from unset, and vLLM's level 0 frees nothing.
        return self._tell([slot], Want(Goal.SLEEPING, level=level or 1, limit_s=self.settings.drain_limit_s))

    def drain(self, replica: str, *, limit_s: float, stop: bool) -> list[Slot]:
        """All replicas when `replica` is empty: the node itself is draining then. Without a limit its streams are to
        move to other replicas now. Holds until `undrain`, over restarts of the agent too."""
        slots = self._chosen(replica)
        moving = limit_s <= 0.0
        hold = Hold(self.settings.drain_news_s + MOVE_S if moving else limit_s, stop, moving)
        held = self._shared.memory.held | {slot.plan.replica: hold for slot in slots}
        self._keep(held, draining=self.draining or not replica)
        return self._tell(slots, hold)

    def undrain(self, replica: str) -> list[Slot]:
        slots = self._chosen(replica)
        gone = {slot.plan.replica for slot in slots}
        held = {name: hold for name, hold in self._shared.memory.held.items() if name not in gone and replica}
        self._keep(held, draining=self.draining and bool(replica))
        return self._tell(slots, Release())

    def _keep(self, held: dict[str, Hold], *, draining: bool) -> None:
        self.draining = draining
        if not self._shared.memory.drained(held, draining=draining):
            logger.warning("cannot write %s: a restart will forget what is drained", self._shared.directory.path)

    async def follow(self, command: Command, slots: list[Slot]) -> AsyncIterator[tuple[Slot, Outcome]]:
        """What is new of each, until all are done."""
        last: dict[str, Outcome] = {}
        while True:
            for slot in slots:
                replica = slot.plan.replica
                now_so = outcome(command, slot.life, name=replica, now=self.clock())
                if now_so != last.get(replica):
                    last[replica] = now_so
                    yield slot, now_so
            if all(seen.done for seen in last.values()):
                return
            await self.changed.wait(PROGRESS_S)

    async def stop(self) -> None:
        """Drain, then stop every engine. Returns when none is left."""
        async for slot, so_far in self.follow(Command.DRAIN, self._leave(self.settings.drain_limit_s)):
            logger.info("%s: %s", slot.plan.replica, so_far.phase)

    async def stop_at_once(self) -> None:
        slots = [slot for slot in self.slots.values() if slot.life.phase in ALIVE]
        self._leave(0.0)
        for slot in slots:
            slot.kill_now()
        while any(slot.life.phase in ALIVE for slot in slots):
            await self.changed.wait(PROGRESS_S)

    def _leave(self, limit_s: float) -> list[Slot]:
        """As a drain, but the next agent shall know nothing of it."""
        self.draining = True
        return self._tell(list(self.slots.values()), Hold(limit_s, stop=True))

    def _chosen(self, replica: str) -> list[Slot]:
        """All when it is empty."""
        return [self._slot(replica)] if replica else list(self.slots.values())

    def _slot(self, replica: str) -> Slot:
        try:
            return self.slots[replica]
        except KeyError:
            known = ", ".join(sorted(self.slots)) or "none; add models to its settings"
            raise Refused(f"no replica {replica!r} on node {self.settings.node}; it has: {known}") from None

    def _tell(self, slots: list[Slot], event: Event) -> list[Slot]:
        for slot in slots:
            slot.tell(event)
        return slots


def _occupies(slot: Slot) -> bool:
    """Does it hold its share of the GPU, or will it by itself?"""
    if slot.life.phase in (Phase.OFF, Phase.FAILED):
        return False
    return slot.life.phase is not Phase.ASLEEP

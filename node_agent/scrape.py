"""Look at one engine, again and again: is it up yet, what is it doing, is it of any use? One task per replica.

Modest: four times a second while it works, once a second while it does not. A router's news that it has sent
something counts as work at once. Every look has a time limit, and no look can delay that at another engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from node_agent.core.events import CameUp, Sick, Streams
from node_agent.core.lifecycle import ANSWERING, Phase
from node_agent.core.report import SentBook, resident
from node_agent.engines.base import progress
from node_agent.engines.client import Blind, EngineClient, EngineSilent
from node_agent.engines.keeper import START_MARK
from node_agent.settings import NodeAgentSettings
from node_agent.slot import Slot

STARTING_S = 0.1
"""Between looks at an engine that is starting: a refused connection costs nothing."""
HEALTH_S = 1.0
LOG_TAIL_BYTES = 65536


class Scraper:
    def __init__(
        self, slot: Slot, book: SentBook, settings: NodeAgentSettings, *, log_path: Path, clock: Callable[[], float]
    ) -> None:
        self._slot, self._book, self._settings = slot, book, settings
        self._log_path, self._clock = log_path, clock
        self._soon = asyncio.Event()
        self._busy = False
        self._health_at = 0.0
        self._held_requests = 0

    def hurry(self) -> None:
        """Something was sent to this engine."""
        self._busy = True
        self._soon.set()

    async def run(self) -> None:
        while True:
            self._soon.clear()
            wait_s = await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._soon.wait()
                    await asyncio.sleep(self._settings.scrape_busy_s)

    async def _look(self) -> float:
        """Return the time until the next look."""
        slot = self._slot
        client, generation = slot.client, slot.life.generation
        if client is None:
            return STARTING_S
        if slot.life.phase is Phase.STARTING:
            await self._is_it_up(client, generation)
            return STARTING_S
        if slot.life.phase in ANSWERING:
            await self._scrape(client, generation)
            moving = slot.life.phase in (Phase.WAKING, Phase.FALLING_ASLEEP)
            if not moving and (reason := slot.vitals.verdict(self._clock())):
                slot.tell(Sick(generation, reason))
        return self._settings.scrape_busy_s if self._busy else self._settings.scrape_idle_s

    async def _is_it_up(self, client: EngineClient, generation: int) -> None:
        slot = self._slot
        try:
            if await client.health() != 200:
                return
            metrics = await client.metrics()
            facts = await client.facts(slot.plan.model.name)
        except EngineSilent:
            slot.start_up = progress(slot.engine.steps, _tail(self._log_path))
            return
        if slot.client is client:
            now = self._clock()
            slot.figures, slot.facts, slot.scraped_at = metrics, facts, now
            slot.came_up()
            slot.tell(CameUp(generation, asleep=metrics.asleep))

    async def _scrape(self, client: EngineClient, generation: int) -> None:
        slot, began = self._slot, self._clock()
        confirmed = self._book.scrape_begins(slot.plan.replica, began)
        try:
            if began - self._health_at >= HEALTH_S:
                self._health_at = began
                await self._is_it_well(client, generation)
            metrics = await client.metrics()
        except Blind:
            if slot.client is client:
                slot.vitals.blind(self._clock())
            return
        except EngineSilent:
            # The vitals notice how long it has been silent; its end, if it has ended, is noticed elsewhere.
            return
        if slot.client is not client:
            return
        slot.figures, slot.scraped_at = metrics, began
        slot.adapters = resident(slot.adapters, metrics.adapters, slot.plan.model.max_loras)
        slot.vitals.scraped(metrics, self._clock(), held_requests=self._held_requests)
        self._book.scraped(slot.plan.replica, confirmed)
        self._busy = metrics.running + metrics.waiting > 0 or self._book.unsettled(slot.plan.replica)
        slot.tell(Streams(generation, metrics.running + metrics.waiting, began))

    async def _is_it_well(self, client: EngineClient, generation: int) -> None:
        """A dead engine core shows as 503 for some seconds before its API server ends; no need to wait for that."""
        status = await client.health()
        self._held_requests = await client.held_requests()
        if status == 503 and self._slot.client is client:
            self._slot.tell(Sick(generation, "its engine core died (/health says 503)"))


def _tail(path: Path) -> bytes:
    """What the log says of the engine that is starting; older ones wrote into the same file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            return file.read().rpartition(START_MARK)[2]
    except OSError:
        return b""

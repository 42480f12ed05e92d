"""This host in the registry: one node record and a record per replica, all under one lease of the agent.

Records are put when they really change, never for load. A lost lease, an empty or restarted registry, an outage of
any length are repaired from here: grant anew, put everything again. Engines never notice.

Draining is a change of state, not an absence: routers stop sending and let their streams end. At the very end the
lease is revoked, which removes everything at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from node_agent.notice import Notice
from wire.records import Record, encode, key
from wire.registry import LeaseLost, Registry, RegistryError

logger = logging.getLogger(__name__)

BACKOFF_FIRST_S = 0.25
BACKOFF_MOST_S = 5.0
GATHER_S = 0.02


class Presence:
    def __init__(
        self, registry: Registry, records: Callable[[], Iterable[Record]], changed: Notice, *, ttl_s: int
    ) -> None:
        self._registry, self._records, self._changed, self._ttl_s = registry, records, changed, ttl_s
        self._lease = 0
        self._back_off_s = BACKOFF_FIRST_S
        self._said = ""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                self._lease = await self._registry.grant(self._ttl_s)
                await self._live(self._lease)
            except* LeaseLost:
                logger.warning("the registry has lost our lease; registering again, engines are not touched")
            except* RegistryError as errors:
                self._say(f"registry: {errors.exceptions[0]}; trying again, engines are not touched")
                await self._back_off()

    async def leave(self) -> None:
        """Everything out of the registry at once. A registry that does not answer forgets us by itself."""
        if self._lease:
            try:
                await self._registry.revoke(self._lease)
            except RegistryError as error:
                logger.warning("could not leave the registry (%s); our records end with the lease", error)

    async def _live(self, lease: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._registry.keep_alive(lease, self._ttl_s))
            tasks.create_task(self._publish(lease))

    async def _publish(self, lease: int) -> None:
        there: dict[str, bytes] = {}
        while True:
            wanted = {key(record): encode(record) for record in self._records()}
            changes = {name: value for name, value in wanted.items() if there.get(name) != value}
            try:
                for name, value in changes.items():
                    await self._registry.put(name, value, lease=lease)
                    there[name] = value
            except LeaseLost:
                raise
            except RegistryError as error:
                # The lease may well live on: what is not known to be there is put again.
                self._say(f"registry: {error}; records will be put again")
                await self._back_off()
                continue
            self._registered(len(there), bool(changes))
            if not changes:
                await self._changed.wait()
                # Scrapes say so too, and change no record; one look serves many of them.
                await asyncio.sleep(GATHER_S)

    def _registered(self, count: int, news: bool) -> None:
        self._back_off_s = BACKOFF_FIRST_S
        if self._said != "registered" and not news:
            self._said = "registered"
            logger.info("registered: %d records under a lease of %d s", count, self._ttl_s)

    def _say(self, text: str) -> None:
        """Once per outage, however often it is tried."""
        if text != self._said:
            self._said = text
            logger.warning("%s", text)

    async def _back_off(self) -> None:
        await asyncio.sleep(self._back_off_s)
        self._back_off_s = min(BACKOFF_MOST_S, 2 * self._back_off_s)

"""Follow the registry: keep the fleet as last known, say what changed, and keep the region's record true.

A broken watch never empties the fleet: it is marked as old and stays. Nothing here commands a node or touches a
request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from control.core.fleet import Fleet
from wire.records import ROOT, Region, Router, UnreadableRecord, decode, encode, key
from wire.registry import Changes, Registry, RegistryError, Snapshot

log = logging.getLogger(__name__)

REGION_CHECK_S = 5.0


class FleetWatch:
    def __init__(self, registry: Registry, *, on_change: Callable[[list[str]], None] = lambda _: None) -> None:
        self._registry = registry
        self._on_change = on_change
        self.fleet = Fleet()
        self.revision = 0
        self.connected = False
        """What is in `fleet` is current; False: it is as last known."""

    async def run(self) -> None:
        """Until cancelled."""
        async for news in self._registry.watch(ROOT, on_connected=self._connection):
            self.connected = True
            self.revision = news.revision
            self._on_change(self._taken(news))

    def _taken(self, news: Snapshot | Changes) -> list[str]:
        if isinstance(news, Snapshot):
            return self.fleet.replace({entry.key: entry.value for entry in news.entries})
        sentences = [
            self.fleet.set(change.key, change.entry.value) if change.entry else self.fleet.remove(change.key)
            for change in news.changes
        ]
        return [sentence for sentence in sentences if sentence]

    def _connection(self, connected: bool) -> None:
        if self.connected and not connected:
            log.warning("the registry is out of reach; the fleet stays as last known")
        self.connected = connected


class RegionKeeper:
    """Keeps the record that tells other regions where this one's routers are."""

    def __init__(self, registry: Registry, watch: FleetWatch, *, region: str, title: str) -> None:
        self._registry = registry
        self._watch = watch
        self._region = region
        self._title = title

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if self._watch.connected:
                await self._keep()
            await asyncio.sleep(REGION_CHECK_S)

    async def _keep(self) -> None:
        # Workers of one router share its URL.
        urls = tuple(sorted({r.url for r in self._watch.fleet.of(Router) if r.region == self._region}))
        try:
            entry = await self._registry.get(key(Region(region=self._region)))
            before = decode(Region, entry.value) if entry else Region(region=self._region)
            after = msgspec.structs.replace(before, title=self._title or before.title, router_urls=urls)
            if entry is None or after != before:
                await self._registry.put_if(key(after), encode(after), revision=entry.revision if entry else 0)
                log.info("region %s: routers at %s", self._region, ", ".join(urls) or "none yet")
        except UnreadableRecord as error:
            log.warning("the record of region %s is left alone: %s", self._region, error)
        except RegistryError as error:
            log.warning("the record of region %s could not be kept: %s", self._region, error)

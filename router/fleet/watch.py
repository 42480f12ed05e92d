"""Follows the registry and keeps the router's view current. With the registry gone the last view goes on serving."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from router.fleet.view import Beliefs, View
from wire.records import ROOT
from wire.registry import Changes, Registry, Snapshot

log = logging.getLogger(__name__)

SETTLE_S = 0.02
"""Changes that come together (a node registers many replicas) become one view."""


class RegistryWatch:
    def __init__(self, registry: Registry, *, region: str, on_view: Callable[[View], None]) -> None:
        self._registry = registry
        self._beliefs = Beliefs(region)
        self._on_view = on_view
        self._dirty = asyncio.Event()
        self._reported: dict[str, str] = {}
        self.view = View()
        self.connected = False
        self.changed_at = 0.0
        """Loop time of the last news."""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publish())
            async for news in self._registry.watch(ROOT, on_connected=self._connected):
                match news:
                    case Snapshot():
                        self._beliefs.replace(news.revision, {e.key: e.value for e in news.entries})
                    case Changes():
                        self._beliefs.apply(news.revision, news.changes)
                self.changed_at = asyncio.get_running_loop().time()
                self._dirty.set()

    async def _publish(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(SETTLE_S)
            self._dirty.clear()
            self.view = self._beliefs.view()
            self._warn_unreadable()
            self._on_view(self.view)

    def _connected(self, connected: bool) -> None:
        if connected != self.connected:
            log.warning("registry %s", "connected" if connected else "lost: serving the last known view")
        self.connected = connected

    def _warn_unreadable(self) -> None:
        for key, why in self._beliefs.unreadable.items():
            if self._reported.get(key) != why:
                log.warning("record %s is left out: %s", key, why)
        self._reported = dict(self._beliefs.unreadable)

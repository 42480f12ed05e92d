"""Follows the registry and keeps the router's view current. With the registry gone the last view goes on serving."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

import msgspec

from router.fleet.view import Beliefs, View, served_models, with_answering
from wire.records import ROOT
from wire.registry import Changes, Registry, Snapshot

log = logging.getLogger(__name__)

DISTRUST_S = 15.0
"""After a snapshot, nodes that vanished but whose agents still answer are kept this long: a lease and a half."""
SETTLE_S = 0.02
"""Changes that come together (a node registers many replicas) become one view."""


class RegistryWatch:
    def __init__(
        self,
        registry: Registry,
        *,
        region: str,
        on_view: Callable[[View], None],
        answering: Callable[[], Collection[str]],
    ) -> None:
        self._registry = registry
        self._answering = answering
        self._beliefs = Beliefs(region)
        self._on_view = on_view
        self._dirty = asyncio.Event()
        self._reported: dict[str, str] = {}
        self._before = View()
        """What was believed before the registry began anew."""
        self._distrust_until = 0.0
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
                        self._before = self.view
                        self._distrust_until = asyncio.get_running_loop().time() + DISTRUST_S
                        self._beliefs.replace(news.revision, {e.key: e.value for e in news.entries})
                    case Changes():
                        self._beliefs.apply(news.revision, news.changes)
                self.changed_at = asyncio.get_running_loop().time()
                self._dirty.set()

    async def _publish(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            distrust_s = self._distrust_until - clock()
            try:
                async with asyncio.timeout(distrust_s if distrust_s > 0 else None):
                    await self._dirty.wait()
            except TimeoutError:
                pass  # what was held back by distrust shows now
            await asyncio.sleep(SETTLE_S)
            self._dirty.clear()
            self.view = self._believed(now=clock())
            self._warn_unreadable()
            self._on_view(self.view)

    def _believed(self, *, now: float) -> View:
        view = self._beliefs.view()
        if now >= self._distrust_until:
            return view
        fleet = with_answering(view.fleet, self._before.fleet, self._answering())
        return view if fleet is view.fleet else msgspec.structs.replace(view, fleet=fleet, models=served_models(fleet))

    def _connected(self, connected: bool) -> None:
        if connected and not self.connected:
            log.info("registry connected")
        elif self.connected and not connected:
            log.warning("registry lost: serving the last known view")
        self.connected = connected

    def _warn_unreadable(self) -> None:
        for key, why in self._beliefs.unreadable.items():
            if self._reported.get(key) != why:
                log.warning("record %s is left out: %s", key, why)
        self._reported = dict(self._beliefs.unreadable)

"""Follows the registry and keeps the router's view current. With the registry gone the last view goes on serving."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection

import msgspec

from router.fleet.forgotten import Forgotten
from router.fleet.view import Beliefs, View, gone_since, served_models
from wire.records import ROOT
from wire.registry import Changes, Registry, Snapshot

log = logging.getLogger(__name__)

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
        self._forgotten = Forgotten()
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

    def reconsider(self) -> None:
        """An agent does not answer any more: its node is not held any longer."""
        if self._forgotten:
            self._dirty.set()

    async def _publish(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._forgotten.patience_s(clock())):
                    await self._dirty.wait()
            await asyncio.sleep(SETTLE_S)
            self._dirty.clear()
            self.view = self._believed(clock())
            self._warn_unreadable()
            self._on_view(self.view)

    def _believed(self, now: float) -> View:
        view = self._beliefs.view()
        fleet = self._forgotten.restored(view.fleet, self.view.fleet, self._answering(), now=now)
        if fleet is not view.fleet:
            view = msgspec.structs.replace(view, fleet=fleet, models=served_models(fleet))
        return msgspec.structs.replace(view, gone=gone_since(view, self.view, now=now))

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

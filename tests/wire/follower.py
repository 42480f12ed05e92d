"""A consumer of a watch, as a router's view is one: it applies what it is told and keeps a list of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from wire.registry import Change, Changes, Entry, Registry, Snapshot

SAFETY_S = 60.0


class Follower:
    def __init__(self, registry: Registry, prefix: str) -> None:
        self.view: dict[str, Entry] = {}
        self.snapshots: list[Snapshot] = []
        self.changes: list[Change] = []
        self.revisions: list[int] = []
        self.connected: list[bool] = []
        self._news = asyncio.Event()
        self.stream = registry.watch(prefix, on_connected=self._on_connected)

    def _on_connected(self, connected: bool) -> None:
        self.connected.append(connected)
        self._news.set()

    async def run(self) -> None:
        async for news in self.stream:
            self.apply(news)

    def apply(self, news: Snapshot | Changes) -> None:
        self.revisions.append(news.revision)
        if isinstance(news, Snapshot):
            self.snapshots.append(news)
            self.view = {entry.key: entry for entry in news.entries}
        else:
            self.changes += news.changes
            for change in news.changes:
                if change.entry is None:
                    self.view.pop(change.key)
                else:
                    self.view[change.key] = change.entry
        self._news.set()

    def put_revisions(self) -> list[int]:
        """Of every put it was told of, in order."""
        return [change.entry.revision for change in self.changes if change.entry]

    async def until(self, what: Callable[[Follower], bool]) -> None:
        async with asyncio.timeout(SAFETY_S):
            while not what(self):
                self._news.clear()
                await self._news.wait()

    async def until_connected(self) -> None:
        await self.until(lambda f: bool(f.snapshots) and f.connected[-1:] == [True])

    async def until_cut_off(self) -> None:
        await self.until(lambda f: f.connected[-1:] == [False])


@contextlib.asynccontextmanager
async def following(registry: Registry, prefix: str, *, started: bool = True) -> AsyncIterator[Follower]:
    async with asyncio.TaskGroup() as tasks:
        follower = Follower(registry, prefix)
        task = tasks.create_task(follower.run())
        if started:
            await follower.until_connected()
        yield follower
        task.cancel()


def values(view: dict[str, Entry]) -> dict[str, bytes]:
    return {key: entry.value for key, entry in view.items()}

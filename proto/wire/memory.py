"""The registry inside one process: the contract of registry.py over a Store, with no server and no wire.

For tests of the rooms and for simulations. It moves nothing between processes and keeps nothing after the process;
`embedded.py` serves the same Store to other processes. Leases expire when somebody looks: at the next call, or in a
watch, which wakes for it. With a clock of its own a test moves time and calls `expire()`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from wire.registry import Change, Changes, Entry, LeaseLost, RegistryUnavailable, Snapshot
from wire.store import Compacted, Delete, Event, Kv, LeaseNotFound, Put, Range, Store, Watcher, at_revision, prefix_end

BATCH_EVENTS = 1000


class MemoryRegistry:
    """Implements `wire.registry.Registry`."""

    def __init__(self, store: Store | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store or Store()
        self._clock = clock
        self._away = False
        self._closing = asyncio.Event()
        self._wakes: dict[asyncio.Event, None] = {}

    async def get(self, key: str) -> Entry | None:
        found = self._ready().range(Range(key.encode())).kvs
        return _entry(found[0]) if found else None

    async def list(self, prefix: str) -> Snapshot:
        return self._snapshot(prefix)

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        store = self._ready()
        try:
            store.apply([Put(key.encode(), value, lease)])
        except LeaseNotFound as error:
            raise LeaseLost(str(error)) from error
        return store.revision

    async def put_if(self, key: str, value: bytes, *, revision: int, lease: int = 0) -> int | None:
        if not self._ready().holds([at_revision(key.encode(), revision)]):
            return None
        return await self.put(key, value, lease=lease)

    async def delete(self, key: str) -> bool:
        return self._ready().apply([Delete(key.encode())])[0].count > 0

    async def grant(self, ttl_s: int) -> int:
        lease = secrets.randbits(62) | 1
        self._ready().grant(lease, ttl_s, self._clock())
        self._wake_all()  # a watch sleeps until the next expiry, which may now be sooner
        return lease

    async def keep_alive(self, lease: int, ttl_s: int) -> None:
        while True:
            if not self._away and self._ready().keep_alive(lease, self._clock()) == 0:
                raise LeaseLost(f"lease {lease:x} is gone")
            try:
                async with asyncio.timeout(ttl_s / 3):
                    await self._closing.wait()
            except TimeoutError:
                pass

    async def revoke(self, lease: int) -> None:
        try:
            self._ready().revoke(lease)
        except LeaseNotFound:
            pass

    async def watch(
        self, prefix: str, *, on_connected: Callable[[bool], None] = lambda _: None
    ) -> AsyncGenerator[Snapshot | Changes, None]:
        wake = asyncio.Event()
        self._wakes[wake] = None
        told: bool | None = None
        watcher: Watcher | None = None
        try:
            while not self._closing.is_set():
                wake.clear()
                if told != (connected := not self._away):
                    told = connected
                    on_connected(connected)
                if not connected:
                    await wake.wait()
                elif watcher is None:
                    snapshot = self._snapshot(prefix)
                    watcher = self._follow(prefix, snapshot.revision + 1, wake)
                    yield snapshot
                elif (events := self._take(watcher)) is None:
                    watcher = None
                elif events:
                    yield _changes(events)
                else:
                    await self._wait(wake)
            raise RegistryUnavailable("the registry was closed")
        finally:
            self._wakes.pop(wake, None)
            if watcher is not None:
                watcher.close()

    async def close(self) -> None:
        self._closing.set()
        self._wake_all()

    def expire(self) -> None:
        """Let time-outs happen now: for a test that has moved its clock."""
        self._store.expire(self._clock())

    def compact(self) -> None:
        """Forget all history: watches that were behind start over with a Snapshot."""
        self._store.compact(self._store.revision)

    def set_away(self, away: bool) -> None:
        """Play an outage: calls raise RegistryUnavailable, watches stand still and resume when it is over."""
        self._away = away
        self._wake_all()

    def _ready(self) -> Store:
        if self._away or self._closing.is_set():
            raise RegistryUnavailable("the registry is closed" if self._closing.is_set() else "the registry is away")
        self.expire()
        return self._store

    def _snapshot(self, prefix: str) -> Snapshot:
        store = self._ready()
        found = store.range(Range(prefix.encode(), prefix_end(prefix.encode())))
        return Snapshot(store.revision, tuple(_entry(kv) for kv in found.kvs))

    def _follow(self, prefix: str, revision: int, wake: asyncio.Event) -> Watcher:
        return self._store.watch(prefix.encode(), prefix_end(prefix.encode()), revision=revision, wake=wake.set)

    def _take(self, watcher: Watcher) -> Sequence[Event] | None:
        """None when the watcher fell out of the history."""
        self.expire()
        try:
            return watcher.take(BATCH_EVENTS)
        except Compacted:
            watcher.close()
            return None

    async def _wait(self, wake: asyncio.Event) -> None:
        expiry = self._store.next_expiry
        try:
            async with asyncio.timeout(None if expiry is None else max(0.001, expiry - self._clock())):
                await wake.wait()
        except TimeoutError:
            pass

    def _wake_all(self) -> None:
        for wake in self._wakes:
            wake.set()


def _entry(kv: Kv) -> Entry:
    return Entry(kv.key.decode(), kv.value, kv.mod_revision, kv.lease)


def _changes(events: Sequence[Event]) -> Changes:
    changes = tuple(Change(e.kv.key.decode(), None if e.deleted else _entry(e.kv)) for e in events)
    return Changes(max(e.kv.mod_revision for e in events), changes)

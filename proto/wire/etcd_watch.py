"""A watch that never loses an event and never hangs: it resumes after every break and lists again when it must.

`Cursor` decides, without waiting for anything, what a message of the stream means. `watch` moves: lists, opens the
stream, probes it, opens it again.

- It resumes from the last *event*, never from a header: while etcd catches up, the header is ahead of the events.
- A probe is a progress request every two seconds. Only the answer counts, as a sign of life: its revision was not in
  step with the events before etcd 3.5.8, and 3.5.8 to 3.5.12 may not answer on a watch that has seen no event, so
  silence of such a stream is allowed to grow.
- Compaction, a new cluster id or a store that went back in time lead to a new Snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from wire.etcd_calls import Calls, HistoryLost, Interrupted
from wire.etcd_methods import WATCH
from wire.etcd_v3 import etcd_pb2 as pb
from wire.registry import Change, Changes, Entry, RegistryError, RegistryUnavailable, Snapshot
from wire.store import ALL, prefix_end

log = logging.getLogger(__name__)

PROBE_S = 2.0
SILENCE_S, LONGEST_SILENCE_S = 4.0, 32.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0

Lister = Callable[[str], Awaitable[tuple[Snapshot, int]]]
"""A snapshot of a prefix, and the id of the cluster that gave it."""


class WatchRefused(RegistryError):  # noqa: N818 - etcd cancelled the watch for a reason other than compaction
    pass


def entry(kv: pb.KeyValue) -> Entry:
    # A key that is not UTF-8 is not ours; it must not break a watch all the same.
    return Entry(kv.key.decode(errors="surrogateescape"), kv.value, kv.mod_revision, kv.lease)


def change(event: pb.Event) -> Change:
    if event.type == pb.Event.DELETE:
        return Change(event.kv.key.decode(errors="surrogateescape"), None)
    found = entry(event.kv)
    return Change(found.key, found)


class Cursor:
    """Pure: where a watch stands, over any number of streams."""

    def __init__(self, *, revision: int, cluster: int) -> None:
        self.next_revision = revision + 1
        self._cluster = cluster
        self._parts: list[pb.Event] = []

    def opened(self) -> None:
        """A new stream: parts of an unfinished message come again."""
        self._parts = []

    def feed(self, message: pb.WatchResponse) -> Changes | None:
        """Raises HistoryLost or WatchRefused."""
        if message.compact_revision:
            raise HistoryLost(f"compacted up to revision {message.compact_revision}")
        if message.canceled:
            raise WatchRefused(message.cancel_reason or "cancelled by the registry")
        if message.created:
            self._check(message.header)
        self._parts += (event for event in message.events if event.kv.mod_revision >= self.next_revision)
        if message.fragment or not self._parts:
            return None
        events, self._parts = self._parts, []
        self.next_revision = events[-1].kv.mod_revision + 1
        return Changes(self.next_revision - 1, tuple(change(event) for event in events))

    def _check(self, header: pb.Header) -> None:
        if header.cluster_id != self._cluster:
            raise HistoryLost("another cluster answers at this address")
        if header.revision < self.next_revision - 1:
            raise HistoryLost(f"the registry is at revision {header.revision}, we were at {self.next_revision - 1}")


async def watch(
    calls: Calls, lister: Lister, prefix: str, on_connected: Callable[[bool], None]
) -> AsyncGenerator[Snapshot | Changes, None]:
    """A definite no before the first Snapshot is raised, as a wrong setting should be; a later one is waited out."""
    cursor: Cursor | None = None
    link = _Link(on_connected)
    first = True
    while True:
        try:
            if cursor is None:
                snapshot, cluster = await lister(prefix)
                cursor, first = Cursor(revision=snapshot.revision, cluster=cluster), False
                yield snapshot
            async with contextlib.aclosing(_follow(calls, prefix, cursor, link)) as stream:
                async for changes in stream:
                    yield changes
        except HistoryLost as error:
            log.info("watch of %s starts over: %s", prefix, error)
            cursor = None
        except (Interrupted, RegistryUnavailable) as error:
            link.lost(error)
        except RegistryError as error:
            if first:
                raise
            log.warning("watch of %s: %s", prefix, error)
            link.lost(error)
            # etcd before 3.5.6 answers an expired token with "permission denied".
            calls.log_in_again()
        await calls.pause(link.pause_s())


class _Link:
    """How the streams of one watch have fared: how long to wait before the next, and what its owner was told."""

    def __init__(self, on_connected: Callable[[bool], None]) -> None:
        self._on_connected = on_connected
        self._told: bool | None = None
        self._next_pause_s = FIRST_PAUSE_S
        self.silence_s = SILENCE_S

    def heard(self, *, news: bool) -> None:
        self._tell(True)
        if news:
            self._next_pause_s, self.silence_s = FIRST_PAUSE_S, SILENCE_S

    def silent(self) -> None:
        self.silence_s = min(2 * self.silence_s, LONGEST_SILENCE_S)

    def lost(self, error: Exception) -> None:
        log.info("watch interrupted: %s", error)
        self._tell(False)

    def pause_s(self) -> float:
        pause_s, self._next_pause_s = self._next_pause_s, min(2 * self._next_pause_s, LONGEST_PAUSE_S)
        return pause_s * random.uniform(0.5, 1.0)

    def _tell(self, connected: bool) -> None:
        if connected is not self._told:
            self._told = connected
            self._on_connected(connected)


async def _follow(calls: Calls, prefix: str, cursor: Cursor, link: _Link) -> AsyncGenerator[Changes, None]:
    """Changes of one stream, until it breaks."""
    cursor.opened()
    ended = asyncio.Event()
    try:
        async with calls.stream(WATCH, _requests(prefix, cursor.next_revision, ended)) as call:
            while True:
                try:
                    async with asyncio.timeout(link.silence_s):
                        message = await call.read()
                except TimeoutError:
                    link.silent()
                    raise
                if not isinstance(message, pb.WatchResponse):
                    raise Interrupted("the watch stream ended")
                changes = cursor.feed(message)
                link.heard(news=not message.created)
                if changes is not None:
                    yield changes
    finally:
        ended.set()


async def _requests(prefix: str, revision: int, ended: asyncio.Event) -> AsyncIterator[pb.WatchRequest]:
    """What we say on a stream: what to watch, then a probe now and then. Runs in gRPC's own task of the call."""
    key = prefix.encode(errors="surrogateescape")
    create = pb.WatchCreateRequest(key=key or ALL, range_end=prefix_end(key), start_revision=revision, fragment=True)
    yield pb.WatchRequest(create_request=create)
    while not ended.is_set():
        try:
            async with asyncio.timeout(PROBE_S):
                await ended.wait()
        except TimeoutError:
            yield pb.WatchRequest(progress_request=pb.WatchProgressRequest())

"""etcd's Watch method over a Store: many watches on one stream, each a cursor into the store's history.

One pump writes everything a stream says, in order, so that an answer to a progress request never overtakes the events
before it. A watch that falls out of the history is cancelled with the compacted revision, as etcd does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from wire.embedded_wire import event
from wire.etcd_v3 import etcd_pb2 as pb
from wire.store import Compacted, Store, Watcher

BATCH_EVENTS = 1000
PROGRESS_ID = -1
"""Watch id of an answer that is about all watches of the stream."""

Context = grpc.aio.ServicerContext[pb.WatchRequest, pb.WatchResponse]


class WatchStream:
    """State of one stream: its watches, and what is still to be said besides events."""

    def __init__(self, store: Store, header: pb.Header) -> None:
        self._store = store
        self._header = header
        self._watchers: dict[int, tuple[Watcher, bool]] = {}
        self._answers: deque[pb.WatchResponse] = deque()
        self._progress_wanted = False
        self._wake = asyncio.Event()
        self._next_id = 0

    async def serve(self, requests: AsyncIterator[pb.WatchRequest], context: Context) -> None:
        """Until the client ends the stream or is gone."""
        try:
            async with asyncio.TaskGroup() as tasks:
                pump = tasks.create_task(self._pump(context))
                async for request in requests:
                    self.take(request)
                pump.cancel()
        finally:
            for watcher, _ in self._watchers.values():
                watcher.close()

    def take(self, request: pb.WatchRequest) -> None:
        match request.WhichOneof("request_union"):
            case "create_request":
                self._create(request.create_request)
            case "cancel_request":
                self._cancel(request.cancel_request.watch_id)
            case "progress_request":
                self._progress_wanted = True
        self._wake.set()

    def say(self) -> list[pb.WatchResponse]:
        """What is due now; called again until it is nothing."""
        said = list(self._answers)
        self._answers.clear()
        for watch_id, (watcher, with_previous) in list(self._watchers.items()):
            try:
                events = watcher.take(BATCH_EVENTS)
            except Compacted as gone:
                self._drop(watch_id)
                said.append(self._response(watch_id, canceled=True, compact_revision=gone.revision))
                continue
            if events:
                said.append(self._response(watch_id, events=[event(e, with_previous=with_previous) for e in events]))
        if not said and self._progress_wanted:
            self._progress_wanted = False
            said.append(self._response(PROGRESS_ID))
        return said

    def _create(self, asked: pb.WatchCreateRequest) -> None:
        watch_id = asked.watch_id or self._next_id
        self._next_id = max(self._next_id, watch_id) + 1
        self._answers.append(self._response(watch_id, created=True))
        try:
            watcher = self._store.watch(asked.key, asked.range_end, revision=asked.start_revision, wake=self._wake.set)
        except Compacted as gone:
            self._answers.append(self._response(watch_id, canceled=True, compact_revision=gone.revision))
            return
        self._watchers[watch_id] = watcher, asked.prev_kv

    def _cancel(self, watch_id: int) -> None:
        if watch_id in self._watchers:
            self._drop(watch_id)
            self._answers.append(self._response(watch_id, canceled=True))

    def _drop(self, watch_id: int) -> None:
        watcher, _ = self._watchers.pop(watch_id)
        watcher.close()

    def _response(
        self,
        watch_id: int,
        *,
        created: bool = False,
        canceled: bool = False,
        compact_revision: int = 0,
        events: list[pb.Event] | None = None,
    ) -> pb.WatchResponse:
        header = pb.Header()
        header.CopyFrom(self._header)
        header.revision = self._store.revision
        return pb.WatchResponse(
            header=header,
            watch_id=watch_id,
            created=created,
            canceled=canceled,
            compact_revision=compact_revision,
            events=events,
        )

    async def _pump(self, context: Context) -> None:
        while True:
            self._wake.clear()
            while said := self.say():
                for response in said:
                    await context.write(response)
            await self._wake.wait()

"""The kept streams of this process: who may have one, who may come back to it, and for how long."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from random import Random

from router.answer import Answer
from router.call import Call
from router.core.errors import Code, Refused
from router.downstream.auth import bearer
from router.downstream.stream import ClientStream, Outlet
from router.kept.stream import AGAIN, KeptStream
from wire.records import Tenant

log = logging.getLogger(__name__)

Serve = Callable[[Call, Outlet], Awaitable[Answer]]


class KeptStreams:
    def __init__(self, *, limit_bytes: int, rng: Random) -> None:
        self.process = f"{rng.getrandbits(32):08x}"
        """First part of each handle: says to its siblings which process keeps a stream."""
        self.returned = 0
        self.expired = 0
        """Walks ended because nobody came back."""
        self.refused = 0
        self.unkept = 0
        """Streams not kept for want of room."""
        self.size = 0
        """Bytes kept, as of the last sweep."""
        self._limit_bytes = limit_bytes
        self._rng = rng
        self._streams: dict[str, KeptStream] = {}
        self._clock = asyncio.get_running_loop().time

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[KeptStream]:
        return iter(self._streams.values())

    async def serve(self, call: Call, client: ClientStream, tenant: Tenant, serve: Serve) -> Answer:
        """The rest of a walk, with an outlet that waits for a client that left."""
        if self.size > self._limit_bytes:
            self.unkept += 1
            return await serve(call, client)
        handle = f"{self.process}.{self._rng.getrandbits(64):016x}"
        window_s, limit_bytes = tenant.resume_buffer_s, tenant.resume_buffer_bytes
        call.kept = kept = KeptStream(call, client, handle=handle, window_s=window_s, limit_bytes=limit_bytes)
        self._streams[handle] = kept
        try:
            answer = await serve(call, kept)
            if kept.streams:
                await kept.heard()
            return answer
        finally:
            call.usage = kept.delivered or call.usage
            if kept.gone or not kept.streams:
                self._streams.pop(handle, None)

    def find(self, call: Call, handle: str) -> KeptStream:
        """The stream a client comes back to. Raises Refused, with the same words whatever it is that does not fit."""
        kept = self._streams.get(handle)
        if kept is None or not kept.streams or kept.gone or _owner(kept.call) != _owner(call):
            raise unknown()
        return kept

    async def follow(self, call: Call, client: ClientStream, handle: str, number: int) -> None:
        """Serve a client that came back, until nothing more will come on its connection. Raises Refused."""
        kept = self.find(call, handle)
        done = kept.attach(client, number)
        self.returned += 1
        back = kept.call.returns[-1]
        log.info("request %s: its client is back after %.1f s", kept.call.request_id, back.absent_s)
        await done.wait()

    def sweep(self, now: float, pause_s: float = 0.0) -> None:
        """`pause_s` is how long this process stood still since the last sweep."""
        size = 0
        for kept in list(self._streams.values()):
            if pause_s:
                kept.excuse(pause_s)
            if kept.overdue(now):
                self._drop(kept)
            else:
                size += kept.backlog.size
        for kept in list(self._streams.values()):  # oldest first
            if size <= self._limit_bytes:
                break
            if kept.over:
                size -= kept.backlog.size
                self._drop(kept)
        self.size = size

    def end_unheard(self) -> None:
        """The router leaves, and the limit is over: nobody is waited for any more."""
        for kept in list(self._streams.values()):
            if kept.unheard:
                kept.close()

    def _drop(self, kept: KeptStream) -> None:
        self.expired += not kept.over
        kept.close()
        del self._streams[kept.handle]


def unknown() -> Refused:
    return Refused(
        Code.STREAM_UNKNOWN,
        "Last-Event-ID names no stream of yours that is kept here for this path: its time is over, its process has "
        f"ended, or another router has it; {AGAIN}",
        param="last-event-id",
    )


def _owner(call: Call) -> tuple[str, str, bytes]:
    """Tenant, path and key must be the same."""
    return call.tenant, call.path, hashlib.sha256(bearer(call.headers)).digest()

"""The client's end of a request, as the walk and the relay see it, and the slow way to it through plain ASGI.

Two implementations pass one contract suite: `AsgiStream` here, for any ASGI server and for tests, and `DirectStream`
(direct.py), which writes to the transport. Writes never wait: a full client is told by `on_pause`, and whoever feeds
the stream stops reading upstream. A client that leaves cancels the task that serves it, in whatever phase it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from router.core.errors import Code, Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Named = dict[bytes, bytes]
LET_GO: Named = {}
"""In place of headers that nobody asks for any more: a stream is open for long."""

HIGH_WATER_BYTES = 64 * 1024
"""Buffered for a client before reading upstream is paused; the transport's own default is the same."""


def _ignore() -> None: ...


def _drop(data: bytes) -> None: ...


class Outlet(Protocol):
    """Where an answer goes."""

    gone: bool
    """The client left. Nothing more can be delivered."""
    started: bool
    """Status and headers are out: from here on only whole events may follow."""
    on_pause: Callable[[], None]
    on_resume: Callable[[], None]

    @property
    def chunks(self) -> Callable[[bytes], None] | None:
        """Takes whole chunks of HTTP, with their framing; None where the body does not go out in chunks, or not yet.
        Asked for with each chunk: it changes when the client leaves."""
        ...

    @property
    def paused(self) -> bool:
        """It is full: who begins to feed it waits for `on_resume` first."""
        ...

    def start(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        """`length` of the whole body, None for a stream."""
        ...

    def write(self, data: bytes) -> None: ...

    def end(self, data: bytes = b"") -> None: ...


class ClientStream(Outlet, Protocol):
    """One request of a client, on one connection."""

    on_lost: Callable[[], None] | None
    """Where it is set, a client that leaves is told here, and the handler goes on."""

    async def serve(self, handler: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run the handler with these arguments. A client that leaves cancels it, and that is no error."""
        ...

    async def read_body(self, limit_bytes: int) -> bytes:
        """Raises Refused when the body is larger than the limit; cancelled when the client leaves."""
        ...

    def cut(self, data: bytes) -> None:
        """End with these bytes, wait for nobody to read them, and let the handler go on without this client."""
        ...


def too_large(limit_bytes: int) -> Refused:
    return Refused(
        Code.TOO_LARGE, f"The request body is larger than the limit of {limit_bytes:,} bytes (body_limit_bytes)."
    )


def named(headers: Headers) -> Named:
    """By name; of those that came twice the first."""
    return dict(reversed(headers))


def declared_length(headers: Named) -> int:
    """Content-Length, 0 when it was not sent; the server has checked that it is a number."""
    return int(headers.get(b"content-length", b"0"))


async def read_body(receive: Receive, *, declared_bytes: int, limit_bytes: int) -> bytes:
    """The whole request body, refused as soon as it is known to be too large."""
    if declared_bytes > limit_bytes:
        raise too_large(limit_bytes)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError("client left while sending its request")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit_bytes:
            raise too_large(limit_bytes)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


class AsgiStream:
    """The stream under any ASGI server: one pump sends what was written, one listener waits for the disconnect."""

    chunks = None
    """The server frames."""

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.gone = False
        self.started = False
        self.on_pause: Callable[[], None] = _ignore
        self.on_resume: Callable[[], None] = _ignore
        self.on_lost: Callable[[], None] | None = None
        self._scope = scope
        self._receive = receive
        self._send = send
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        self._buffered_bytes = 0
        self.paused = False
        self._body_read = asyncio.Event()

    async def serve(self, handler: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run the handler; return when it is done and all it wrote was sent, or the client left."""
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._handle(handler, *arguments))
            pump = group.create_task(self._pump())
            listener = group.create_task(self._listen(work, pump))
            await asyncio.wait({work})
            self._queue.put_nowait({"type": "stop"})
            await asyncio.wait({pump})
            listener.cancel()

    async def read_body(self, limit_bytes: int) -> bytes:
        declared = declared_length(named(self._scope["headers"]))
        try:
            return await read_body(self._receive, declared_bytes=declared, limit_bytes=limit_bytes)
        finally:
            self._body_read.set()

    def start(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        self.started = True
        if length is not None:
            headers = [*headers, (b"content-length", b"%d" % length)]
        self._queue.put_nowait({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, data: bytes) -> None:
        self._put(data, more=True)

    def end(self, data: bytes = b"") -> None:
        self._put(data, more=False)

    def cut(self, data: bytes) -> None:
        self.end(data)
        self.gone, self.on_lost = True, None

    def _put(self, data: bytes, *, more: bool) -> None:
        self._buffered_bytes += len(data)
        self._queue.put_nowait({"type": "http.response.body", "body": data, "more_body": more})
        if self._buffered_bytes > HIGH_WATER_BYTES and not self.paused:
            self.paused = True
            self.on_pause()

    async def _handle(self, handler: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        try:
            await handler(*arguments)
        except asyncio.CancelledError:
            if not self.gone:
                raise

    async def _pump(self) -> None:
        while (message := await self._queue.get())["type"] != "stop":
            await self._send(message)
            self._buffered_bytes -= len(message.get("body", b""))
            if self.paused and self._buffered_bytes <= HIGH_WATER_BYTES // 2:
                self.paused = False
                self.on_resume()

    async def _listen(self, work: asyncio.Task[None], pump: asyncio.Task[None]) -> None:
        await self._body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if work.done() or self.gone:
            return
        self.gone = True
        pump.cancel()
        if self.on_lost is not None:
            self.on_lost()
        else:
            work.cancel()

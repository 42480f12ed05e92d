"""uvicorn's httptools protocol with a short way for token streams: the endpoint may write to the transport.

An ASGI `send` per token costs more than the rest of the relay together, so each request finds a `DirectStream` in
`scope["extensions"][EXTENSION]`. Everything else of HTTP/1.1 (parsing, keep-alive, pipelining) stays uvicorn's.
What uvicorn leaves open is closed here: the size of a request head, and the time a client may take to send it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from router.core.errors import Code, error_json
from router.downstream.stream import Headers, _ignore, declared_length, read_body, too_large

EXTENSION = "switchyard.stream"
HEAD_LIMIT_BYTES = 32 * 1024
"""Request line and headers; nginx and Envoy allow 32 and 60 KiB."""


class DirectStream:
    """One response, written straight to the client's transport. The contract is `ClientStream`'s."""

    __slots__ = ("_chunked", "_cycle", "_head", "_task", "gone", "on_pause", "on_resume", "started")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.gone = False
        self.started = False
        self.on_pause: Callable[[], None] = _ignore
        self.on_resume: Callable[[], None] = _ignore
        self._cycle = cycle
        self._head = b""
        self._chunked = False
        self._task: asyncio.Task[Any] | None = None

    async def serve(self, handler: Callable[[], Any]) -> None:
        """Run the handler; a client that leaves cancels it, and that is no error."""
        task = self._task = asyncio.current_task()
        assert task is not None
        if self._cycle.disconnected:
            self.gone = True
            return
        try:
            await handler()
        except asyncio.CancelledError:
            if not self.gone:
                raise
            task.uncancel()
        finally:
            self._task = None

    async def read_body(self, limit_bytes: int) -> bytes:
        cycle = self._cycle
        if not cycle.more_body:  # came with the head in one read: the usual case
            if len(cycle.body) > limit_bytes:
                raise too_large(limit_bytes)
            body, cycle.body = bytes(cycle.body), bytearray()
            cycle.message_event.clear()
            return body
        declared = declared_length(cycle.scope["headers"])  # type: ignore[arg-type]
        return await read_body(cycle.receive, declared_bytes=declared, limit_bytes=limit_bytes)  # type: ignore[arg-type]

    def start(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        cycle = self._cycle
        cycle.response_started = self.started = True
        cycle.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        if length is not None:
            lines.append(b"content-length: %d\r\n" % length)
        elif cycle.scope["http_version"] == "1.0":
            cycle.keep_alive = False  # the end of the connection is the end of the body
        else:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)  # goes out with the first bytes of the body, in one write

    def write(self, data: bytes) -> None:
        if self.gone:
            return
        if self._head:
            self._cycle.transport.write(self._head + self._framed(data))
            self._head = b""
        elif self._chunked:
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._cycle.transport.write(data)

    def end(self, data: bytes = b"") -> None:
        if self.gone:
            return
        cycle = self._cycle
        last = b"0\r\n\r\n" if self._chunked else b""
        if rest := self._head + (self._framed(data) if data else b"") + last:
            cycle.transport.write(rest)
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def lost(self) -> None:
        """The connection is gone: wake whoever serves the request, wherever it waits."""
        self.gone = True
        if self._task is not None:
            self._task.cancel("client left")

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data


class RouterProtocol(HttpToolsProtocol):
    """One client connection."""

    connections_limit: int = 20_000
    requests_limit: int = 1000
    """Answers on one connection; the last of them says that it closes."""
    headers_limit: int = 100
    request_limit_s: float = 60.0
    """From the first byte of a request to its last, and from connecting to the first byte."""
    read_deadline: float = 0.0
    """The request under way must be complete by then (loop time); 0 between requests. Checked by a sweep."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.streams: deque[DirectStream] = deque()
        """The stream being served, then those of pipelined requests that wait behind it."""
        self.head_bytes: int | None = None
        """Bytes of an unfinished request head so far; None when no head is being read."""
        self.requests = 0
        self.read_deadline = self.loop.time() + self.request_limit_s
        if len(self.connections) > self.connections_limit:
            message = f"This router has reached its limit of {self.connections_limit:,} connections."
            self.refuse(Code.OVERLOADED, 503, message)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.head_bytes is not None:
            self.head_bytes += len(data)
            if self.head_bytes > HEAD_LIMIT_BYTES:
                self.refuse(Code.TOO_LARGE, 431, f"The request head is larger than {HEAD_LIMIT_BYTES:,} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head_bytes = 0
        self.read_deadline = self.loop.time() + self.request_limit_s

    def on_headers_complete(self) -> None:
        self.head_bytes = None
        super().on_headers_complete()
        self.requests += 1
        if self.requests >= self.requests_limit:
            self.cycle.keep_alive = False
        stream = DirectStream(self.cycle)
        self.streams.append(stream)
        self.scope["extensions"] = {EXTENSION: {"stream": stream}}

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.read_deadline = 0.0

    def on_response_complete(self) -> None:
        if self.streams:
            self.streams.popleft()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.streams:
            self.streams[0].on_pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.streams:
            self.streams[0].on_resume()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for stream in self.streams:
            stream.lost()
        self.streams.clear()

    def send_400_response(self, msg: str) -> None:
        self.refuse(Code.INVALID_REQUEST, 400, "This is not a valid HTTP/1.1 request.")

    def refuse(self, code: Code, status: int, message: str) -> None:
        """Answer below ASGI, for requests that never became one, and close."""
        self.read_deadline, self.head_bytes = 0.0, None
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # bytes of another answer are under way; nothing can be said
            return
        body = error_json(code, message)
        head = b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (STATUS_LINE[status], len(body)) + body)
        self.transport.close()

    def overdue(self, now: float) -> bool:
        """True, and answered, when the client took too long to send its request."""
        if not self.read_deadline or now < self.read_deadline:
            return False
        self.refuse(Code.BODY_TIMEOUT, 408, f"The request did not arrive within {self.request_limit_s:g} s.")
        return True

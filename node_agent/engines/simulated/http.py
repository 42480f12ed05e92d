"""HTTP/1.1 for the simulated engine: one asyncio.Protocol per connection, over httptools.

Reads requests, one at a time and in order, and writes whole answers or chunked streams. It knows no paths. It is as
thin as it can be because it is the upstream of relay benchmarks: an event of a stream is one bytes object and one
`transport.write`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import cast
from urllib.parse import parse_qsl, unquote

import httptools

_PHRASES = {s.value: s.phrase for s in HTTPStatus}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n%b\r\n"
)


class Request:
    """One request, complete."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path", "query")

    def __init__(self, method: str, target: bytes, headers: dict[bytes, bytes], body: bytes, keep_alive: bool) -> None:
        url = httptools.parse_url(target)
        self.method = method
        self.path = unquote(url.path.decode()) if url.path else "/"
        self.query: dict[str, str] = dict(parse_qsl(url.query.decode())) if url.query else {}
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive


class Service:
    """What a connection serves; the replica's routes implement it."""

    def handle(self, request: Request, connection: Connection) -> None:
        """Answer now or later through the connection."""
        raise NotImplementedError

    def answered(self, request: Request, status: int) -> None: ...

    def opened(self, connection: Connection) -> None: ...

    def closed(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """`on_gone` and `on_writable` belong to the answer in progress and are cleared at its end."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.transport: asyncio.Transport | None = None
        self.paused = False
        """The client reads too slowly: hold further events until `on_writable`."""
        self.headers: dict[str, str] = {}
        """Of every answer to the request in progress."""
        self.on_gone: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] = deque()
        self._current: Request | None = None
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._target = b""
        self._body: list[bytes] = []

    # What an answer does

    def respond(self, status: int, body: bytes, *, content_type: str = "application/json", **headers: str) -> None:
        """A whole answer; underscores in names of headers stand for dashes."""
        extra = {k.replace("_", "-"): v for k, v in headers.items()}
        self._write_head_and_body(status, body, content_type, extra)
        self._done()

    def begin_stream(self) -> None:
        self._status = 200
        if self.transport is not None:
            extra = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
            self.transport.write(_STREAM_HEAD % extra.encode())

    def send(self, events: bytes) -> None:
        """One chunk of a stream."""
        if self.transport is not None:
            self.transport.write(b"%x\r\n%b\r\n" % (len(events), events))

    def end_stream(self) -> None:
        if self.transport is not None:
            self.transport.write(b"0\r\n\r\n")
        self._done()

    def close(self) -> None:
        """Send what is written, then FIN, as a killed process does."""
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """Send RST: what is not yet read is lost."""
        if self.transport is not None:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, because uvloop's transports are no subclass.
        self.transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.service.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        gone, self.on_gone, self.on_writable = self.on_gone, None, None
        self._queue.clear()
        if gone is not None:
            gone()
        self.service.closed(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._write_head_and_body(400, b"Invalid HTTP request received.", "text/plain", {"connection": "close"})
            self.close()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.on_writable is not None:
            self.on_writable()

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._headers, self._target, self._body = {}, b"", []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._headers[name] = value
        if name == b"expect" and value.lower() == b"100-continue" and self.transport is not None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        keep_alive = self._parser.should_keep_alive()
        request = Request(method, self._target, self._headers, b"".join(self._body), keep_alive)
        self._queue.append(request)
        if self._current is None:
            self._next()

    # Inside

    def _next(self) -> None:
        if self._queue and self.transport is not None:
            self._current = self._queue.popleft()
            self.service.handle(self._current, self)

    def _done(self) -> None:
        request, self._current = self._current, None
        self.headers = {}
        self.on_gone = self.on_writable = None
        if request is not None:
            self.service.answered(request, self._status)
        if request is not None and not request.keep_alive:
            self.close()
        elif self._queue:
            self._next()

    def _write_head_and_body(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str]) -> None:
        self._status = status
        if self.transport is None:
            return
        lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, '')}", f"content-length: {len(body)}"]
        lines += [f"content-type: {content_type}"] if content_type else []
        lines += [f"{name}: {value}" for name, value in (self.headers | dict(headers)).items()]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

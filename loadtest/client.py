"""A client cheap enough not to colour what it measures: HTTP/1.1 and SSE over asyncio.Protocol, a few us per event.

It counts whole SSE events, notes when the first one with data came, and how long every event was under way where the
engine writes its send time into it: `@` and 19 digits of CLOCK_MONOTONIC in ns, see baselines/engine.py. Both ends must
be on one machine for that. It decodes no JSON; a caller that wants the answer asks to keep the bytes.

It does not pace: the engine does. It does not retry, but for one case: a kept-alive connection that the server had
already closed when the request was written.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, cast

import httptools
import msgspec

STAMP = re.compile(rb"@(\d{19})")
_ENDS = (b"data: [DONE]\n\n", b"data: [DONE]\r\n\r\n")
_TAIL = 20

monotonic = time.perf_counter


class Recorder(msgspec.Struct):
    """What a set of exchanges saw, in seconds. One per measurement; exchanges append to it."""

    events: int = 0
    first_event_s: list[float] = msgspec.field(default_factory=list)
    delay_s: list[float] = msgspec.field(default_factory=list)
    """Per event, from the engine's write to our read; empty without stamps."""
    stamps: bool = True
    """False spares the search for stamps where nobody looks at the delays."""


class Exchange:
    """One request and what came back. `await ended()` returns when it is over, in whatever way."""

    __slots__ = (
        "_awaited",
        "_connection",
        "_finish",
        "_recorder",
        "_tail",
        "_waiter",
        "body",
        "bytes",
        "error",
        "events",
        "first_event_s",
        "headers",
        "last_event_at",
        "longest_gap_s",
        "sent_at",
        "stale",
        "status",
        "total_s",
    )

    def __init__(self, *, recorder: Recorder | None, keep: bool) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.events = 0
        self.bytes = 0
        self.first_event_s = -1.0
        self.last_event_at = 0.0
        self.longest_gap_s = 0.0
        """Between two reads that brought events."""
        self.total_s = -1.0
        self.error = ""
        self.stale = False
        """The server had closed the kept-alive connection before it saw this request."""
        self.body: list[bytes] | None = [] if keep else None
        self.sent_at = 0.0
        self._recorder = recorder
        self._tail = b""
        self._finish: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited = 0
        self._waiter: asyncio.Future[None] | None = None
        self._connection: Connection | None = None

    @property
    def complete(self) -> bool:
        """A stream that ended with [DONE] in a whole HTTP message."""
        return self.finished and self.status == 200 and self._tail.endswith(_ENDS)

    @property
    def finished(self) -> bool:
        """The HTTP message came to its end."""
        return self._finish.done() and not self.error

    async def ended(self) -> None:
        await asyncio.shield(self._finish)

    async def reached(self, events: int) -> bool:
        """Wait until so many events came; False if the exchange ended before."""
        if self.events < events and not self._finish.done():
            self._awaited = events
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self.events >= events

    def abort(self) -> None:
        """Leave at once, as a client that closes its tab does."""
        if not self._finish.done():
            connection = self._connection
            self.end("aborted")
            if connection is not None:
                connection.drop()

    def text(self) -> bytes:
        assert self.body is not None, "the exchange was not asked to keep its bytes"
        return b"".join(self.body)

    def on_body(self, data: bytes) -> None:
        now = monotonic()
        found = data.count(b"\n\n")
        if data[0] == 10 and self._tail.endswith(b"\n") and not self._tail.endswith(b"\n\n"):
            found += 1
        self._tail = data[-_TAIL:] if len(data) >= _TAIL else (self._tail + data)[-_TAIL:]
        self.bytes += len(data)
        if self.body is not None:
            self.body.append(data)
        if found:
            self._count(found, data, now)

    def _count(self, found: int, data: bytes, now: float) -> None:
        recorder = self._recorder
        if not self.events:
            if b"data:" not in data:
                return  # comments keep a connection alive, they are no first token
            self.first_event_s = now - self.sent_at
            if recorder is not None:
                recorder.first_event_s.append(self.first_event_s)
        elif now - self.last_event_at > self.longest_gap_s:
            self.longest_gap_s = now - self.last_event_at
        self.events += found
        self.last_event_at = now
        if recorder is not None:
            recorder.events += found
            if recorder.stamps:
                read_ns = time.monotonic_ns()
                recorder.delay_s.extend([(read_ns - int(sent)) * 1e-9 for sent in STAMP.findall(data)])
        if self._waiter is not None and self.events >= self._awaited:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None

    def end(self, error: str) -> None:
        if self._finish.done():
            return
        self.error = error
        self.total_s = monotonic() - self.sent_at
        self._connection = None
        self._finish.set_result(None)
        self._wake()


class Connection(asyncio.Protocol):
    """One TCP connection with at most one exchange on it."""

    def __init__(self, pool: list[Connection], everyone: set[Connection]) -> None:
        self._pool = pool
        self._everyone = everyone
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._exchange: Exchange | None = None
        self._fresh = True
        self._heard = False

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._everyone.add(self)

    def begin(self, exchange: Exchange, request: bytes) -> None:
        assert self._transport is not None
        self._exchange = exchange
        self._heard = False
        self._parser = httptools.HttpResponseParser(self)
        exchange._connection = self
        exchange.sent_at = monotonic()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._over(f"malformed response: {error}")
            self.drop()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None:
            self._exchange.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._exchange is not None:
            self._exchange.on_body(body)

    def on_message_complete(self) -> None:
        keep = self._parser.should_keep_alive()
        self._over("")
        self._fresh = False
        if keep and self.usable:
            self._pool.append(self)
        else:
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._everyone.discard(self)
        if self in self._pool:
            self._pool.remove(self)
        if self._exchange is not None:
            self._exchange.stale = not self._fresh and not self._heard
            self._over(f"connection lost: {exc or 'closed by the server'}")

    def drop(self, why: str = "aborted") -> None:
        self._over(why)
        if self._transport is not None:
            self._transport.abort()

    def _over(self, error: str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.end(error)


class Client:
    """Opens exchanges with one server over kept-alive connections. Use it in one event loop; close it at the end."""

    def __init__(self, host: str, port: int, *, api_key: str = "") -> None:
        self.host = host
        self.port = port
        self._api_key = api_key
        self._free: list[Connection] = []
        self._everyone: set[Connection] = set()

    def encode(self, path: str, body: Any = None, *, method: str = "", headers: dict[str, str] | None = None) -> bytes:
        """The bytes of a request, to be sent as often as one likes."""
        content = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1", f"host: {self.host}:{self.port}"]
        if self._api_key:
            lines.append(f"authorization: Bearer {self._api_key}")
        if body is not None:
            lines += ["content-type: application/json", f"content-length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + content

    async def open(self, request: bytes, *, recorder: Recorder | None = None, keep: bool = False) -> Exchange:
        """Send a request; return without waiting for an answer. A refused connection ends the exchange, no raise."""
        exchange = Exchange(recorder=recorder, keep=keep)
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                connection.begin(exchange, request)
                return exchange
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self._free, self._everyone), self.host, self.port
            )
        except OSError as error:
            exchange.sent_at = monotonic()
            exchange.end(f"cannot connect: {error}")
            return exchange
        connection.begin(exchange, request)
        return exchange

    async def fetch(self, request: bytes, *, recorder: Recorder | None = None, keep: bool = True) -> Exchange:
        """Send a request and wait for its end. Cancelling the caller aborts the exchange."""
        while True:
            exchange = await self.open(request, recorder=recorder, keep=keep)
            try:
                await exchange.ended()
            finally:
                exchange.abort()
            if not exchange.stale:
                return exchange

    async def get(self, path: str) -> Exchange:
        return await self.fetch(self.encode(path))

    async def post(self, path: str, body: Any) -> Exchange:
        return await self.fetch(self.encode(path, body))

    def close(self) -> None:
        """Drop every connection; what still ran ends as aborted."""
        for connection in list(self._everyone):
            connection.drop()
        self._free.clear()

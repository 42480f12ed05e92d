"""One keep-alive HTTP/1.1 connection to an engine: sends a request, hands the answer on as it comes.

An `asyncio.Protocol` over httptools and no await per chunk. A chunk that fills a read exactly, which is how engines
send token events, is taken out of its framing by hand; everything else goes through the parser.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import httptools

from router.core.framing import LIMIT_BYTES, LINES_OF_READS
from router.core.run import Take, nothing_usual
from router.upstream.acks import acknowledge_late

Headers = list[tuple[bytes, bytes]]


class Receiver(Protocol):
    """Whoever asked. Called from the event loop, must not block, must not raise."""

    def head(self, status: int, headers: Headers) -> None: ...

    def body(self, data: bytes) -> None: ...

    def end(self) -> None:
        """The answer is complete as HTTP; the connection may be used again."""
        ...

    def lost(self, error: Exception | None) -> None:
        """The connection ended, or spoke no HTTP, before the answer was complete."""
        ...


class Sink(Protocol):
    """Where chunks go that need no receiver."""

    @property
    def chunks(self) -> Callable[[bytes], None] | None:
        """Takes whole chunks, with their framing."""
        ...


class EngineConnection(asyncio.Protocol):
    __slots__ = (
        "_headers",
        "_parser",
        "_recast",
        "_receiver",
        "_short",
        "_sink",
        "_transport",
        "address",
        "answered",
        "idle_since",
        "paused",
        "reusable",
        "rtt_s",
        "used",
    )

    def __init__(self, address: str) -> None:
        self.address = address
        self.used = 0
        """Requests sent on this connection: a reused one may have been closed by the engine meanwhile."""
        self.answered = False
        """A byte of the present answer has come."""
        self.reusable = True
        self.idle_since = 0.0
        self.rtt_s = 0.0
        """Round trip of its handshake; 0 when nobody knows."""
        self.paused = False
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self._short = False
        """The parser stands between two chunks of a chunked body."""
        self._recast: Take = nothing_usual
        self._sink: Sink | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def busy(self) -> bool:
        return self._receiver is not None

    def send(self, head: bytes, body: bytes, receiver: Receiver) -> None:
        assert self._transport is not None
        assert self._receiver is None
        self._receiver = receiver
        self.answered = False
        self.used += 1
        self._transport.writelines((head, body))

    def streams(self) -> None:
        """What comes now is many small parts."""
        if self._transport is not None:
            acknowledge_late(self._transport)

    def shorten(self, recast: Take, sink: Sink) -> None:
        """From now on a read that is one chunk goes past the receiver if `recast`, which gets the read and the length
        of its size line, makes a chunk for the sink of it."""
        self._recast, self._sink = recast, sink

    def lengthen(self) -> None:
        """Everything goes to the receiver again."""
        self._recast, self._sink = nothing_usual, None

    def pause(self) -> None:
        """Stop reading: the client does not keep up. The engine's own send buffer then fills, and it waits."""
        if self._transport is not None and not self._transport.is_closing():
            self.paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        self.paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once, unsent bytes dropped. vLLM stops generating when it sees this."""
        self._receiver = None
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._short and (size := len(data)) < LIMIT_BYTES and data.startswith(line := LINES_OF_READS[size]):
            skip, recast = len(line), self._recast  # what an attribute holds is called sooner by way of a local name
            if (chunk := recast(data, skip)) is not None:
                write = self._sink.chunks  # type: ignore[union-attr]  # there is one that takes them
                write(chunk)  # type: ignore[misc]
                return
            if data.endswith(b"\r\n"):
                self._receiver.body(data[skip:-2])  # type: ignore[union-attr]  # between chunks there is one
                return
        self.answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(error)

    def eof_received(self) -> None:
        """Close our side too; connection_lost follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._break(exc)
        self._parser = None  # it refers to this connection: together they would wait for a collection of cycles

    def _break(self, error: Exception | None) -> None:
        self.reusable = self._short = False
        receiver, self._receiver = self._receiver, None
        if self._transport is not None:
            self._transport.abort()
        if receiver is not None:
            receiver.lost(error)

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._receiver is None or status < 200:  # 100 Continue and the like say nothing
            return
        headers, self._headers = self._headers, []
        self._receiver.head(status, headers)

    def on_chunk_header(self) -> None:
        self._short = False

    def on_chunk_complete(self) -> None:
        self._short = self._receiver is not None

    def on_body(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver.body(data)

    def on_message_complete(self) -> None:
        self._short = False
        if not self._parser.should_keep_alive():
            self.reusable = False
        if self._parser.get_status_code() < 200:
            return
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            self.reusable = False  # an answer nobody asked for: do not trust this connection
        else:
            receiver.end()

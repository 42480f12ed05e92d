"""uvicorn's httptools protocol with a short way for token streams: the endpoint may write to the transport.

An ASGI `send` per token costs more than the rest of the relay together, so each request finds a `DirectStream` in
`scope["extensions"][EXTENSION]`. Everything else of HTTP/1.1 (parsing, keep-alive, pipelining) stays uvicorn's.
What uvicorn and llhttp leave open is closed here: the size of a request head, the time a client may take to send it,
and what RFC 9112 wants refused because two readers could see different messages in it (tests/router/test_framing.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from router.core.errors import Code, error_json
from router.downstream.light import Flow, Queue, Signal
from router.downstream.stream import Headers, _ignore, declared_length, read_body, too_large

EXTENSION = "switchyard.stream"
HEAD_LIMIT_BYTES = 32 * 1024
"""Request line and headers; nginx and Envoy allow 32 and 60 KiB."""


class DirectStream:
    """One response, written straight to the client's transport. The contract is `ClientStream`'s."""

    __slots__ = ("_chunked", "_cycle", "_head", "_task", "gone", "on_lost", "on_pause", "on_resume", "started")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.gone = False
        self.started = False
        self.on_pause: Callable[[], None] = _ignore
        self.on_resume: Callable[[], None] = _ignore
        self.on_lost: Callable[[], None] | None = None
        self._cycle = cycle
        self._head = b""
        self._chunked = False
        self._task: asyncio.Task[Any] | None = None

    @property
    def paused(self) -> bool:
        return self._cycle.flow.write_paused

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
        # Nobody asks for it any more, and it refers to this stream, which refers to it.
        cycle.scope.clear()  # type: ignore[attr-defined]

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

    def cut(self, data: bytes) -> None:
        self._cycle.keep_alive = False
        self.end(data)
        self.gone, self.on_lost = True, None
        if self._cycle.transport.get_write_buffer_size():  # half open, or too slow: closing would wait for it
            self._cycle.transport.abort()

    def lost(self) -> None:
        """The connection is gone: wake whoever serves the request, wherever it waits."""
        self.gone = True
        if self.on_lost is not None:
            self.on_lost()
        elif self._task is not None:
            self._task.cancel("client left")

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data


class Fault(Exception):  # noqa: N818 - raised through the parser's callbacks, to end the parsing
    """Why a request is refused below ASGI."""

    def __init__(self, code: Code, status: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.message = message


NO_HTTP = Fault(Code.INVALID_REQUEST, 400, "This is not a valid HTTP/1.1 request.")


class RouterProtocol(HttpToolsProtocol):
    """One client connection."""

    connections_limit: int = 20_000
    requests_limit: int = 1000
    """Answers on one connection; the last of them says that it closes."""
    headers_limit: int = 100
    request_limit_s: float = 60.0
    """From the first byte of a request to its last, and from connecting to the first byte."""

    # Slots keep uvicorn's own attributes few enough for a table of names that all connections share.
    __slots__ = ("fault", "head_bytes", "hosts", "in_body", "read_deadline", "requests", "streams")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport)
        self.pipeline = Queue()  # type: ignore[assignment]
        self.streams: Queue[DirectStream] = Queue()
        """The stream being served, then those of pipelined requests that wait behind it."""
        self.head_bytes: int | None = None
        """Bytes of an unfinished request head so far; None when no head is being read."""
        self.requests = 0
        self.hosts = 0
        self.header_bytes = 0
        """Of the names and values read so far."""
        self.in_body = False
        """The head of the last of `streams` was read, its body not yet to the end."""
        self.fault: Fault | None = None
        """Nothing more is read; said once the requests before it have been answered."""
        self.read_deadline = self.loop.time() + self.request_limit_s
        """The request under way must be complete by then (loop time); 0 between requests. Checked by a sweep."""
        if len(self.connections) > self.connections_limit:
            message = f"This router has reached its limit of {self.connections_limit:,} connections."
            self.refuse(Fault(Code.OVERLOADED, 503, message))

    def data_received(self, data: bytes) -> None:
        if self.fault is not None:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            self.refuse(error.__context__ if isinstance(error.__context__, Fault) else NO_HTTP)
            return
        if self.head_bytes is not None:
            self.head_bytes += len(data)
            if self.head_bytes > HEAD_LIMIT_BYTES:
                self.refuse(_head_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head_bytes = self.hosts = self.header_bytes = 0
        self.read_deadline = self.loop.time() + self.request_limit_s

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers are dropped: merged into the headers they could name another key than the head did."""
        if self.head_bytes is None:
            return
        name = name.lower()
        if name == b"host":
            self.hosts += 1
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        elif name == b"transfer-encoding":
            self._check_coding(value)
        self.header_bytes += len(name) + len(value)
        self.headers.append((name, value))
        if len(self.headers) > self.headers_limit:
            raise Fault(Code.TOO_LARGE, 431, f"The request has more than {self.headers_limit} header lines.")

    def on_headers_complete(self) -> None:
        self.head_bytes = None
        self._check_head()
        if self.parser.should_upgrade():  # the parser stops here; see _without_upgrade
            return
        super().on_headers_complete()
        self.cycle.message_event = Signal()  # type: ignore[assignment]
        self.requests += 1
        if self.requests >= self.requests_limit:
            self.cycle.keep_alive = False
        self.in_body = True
        stream = DirectStream(self.cycle)
        self.streams.append(stream)
        self.scope["extensions"] = {EXTENSION: {"stream": stream}}

    def on_message_complete(self) -> None:
        if not self.in_body:
            return  # of a request that is parsed a second time
        super().on_message_complete()
        self.in_body = False
        self.read_deadline = 0.0

    def on_response_complete(self) -> None:
        if self.streams:
            self.streams.popleft()
        super().on_response_complete()
        if self.fault is not None and not self.streams:
            self._say(self.fault)

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

    def refuse(self, fault: Fault) -> None:
        """Answer below ASGI, for requests that never became one, and close. Requests that came before it on this
        connection are answered first: an answer out of order would be taken for theirs."""
        self.read_deadline, self.head_bytes, self.fault = 0.0, None, fault
        cut = self.streams[-1] if self.in_body and self.streams else None
        if cut is not None and cut is not self.streams[0]:
            self.streams.pop()
            self.pipeline.popleft()  # uvicorn adds at the left
            cut = None
        if cut is not None and cut.started:
            self.transport.abort()  # bytes of its answer are under way; nothing can be said
        elif self.in_body and cut is None and not self.streams:
            self.transport.close()  # it was answered before its end was read
        elif cut is not None or not self.streams:
            self._say(fault)

    def overdue(self, now: float) -> bool:
        """True, and answered, when the client took too long to send its request."""
        if not self.read_deadline or now < self.read_deadline:
            return False
        message = f"The request did not arrive within {self.request_limit_s:g} s."
        self.refuse(Fault(Code.BODY_TIMEOUT, 408, message))
        return True

    def _say(self, fault: Fault) -> None:
        body = error_json(fault.code, fault.message)
        head = b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (STATUS_LINE[fault.status], len(body)) + body)
        self.transport.close()

    def _check_coding(self, value: bytes) -> None:
        """The parser takes any list that ends in `chunked` and leaves the rest undone, and takes it from HTTP/1.0."""
        if value.strip(b" \t").lower() != b"chunked" or self.parser.get_http_version() != "1.1":
            raise Fault(Code.INVALID_REQUEST, 501, "Of transfer codings only `chunked` is served, in HTTP/1.1.")

    def _check_head(self) -> None:
        """What RFC 9112 wants refused and the parser lets pass."""
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Fault(Code.INVALID_REQUEST, 505, "This router speaks HTTP/1.1 and HTTP/1.0.")
        if self.hosts > 1 or (not self.hosts and version == "1.1"):
            raise Fault(Code.INVALID_REQUEST, 400, "A request needs exactly one Host header.")
        if b"#" in self.url or self.parser.get_method() == b"CONNECT":
            raise Fault(Code.INVALID_REQUEST, 400, "This request target is not served here.")
        if len(self.url) + self.header_bytes > HEAD_LIMIT_BYTES:
            raise _head_too_large()

    def _without_upgrade(self, rest: bytes) -> None:
        """Serve a request that offers an upgrade (`h2c` from Java's HttpClient) as if it had not.

        httptools takes what follows such a head for another protocol and drops it, body included; the next read would
        then be parsed as a new request. So the head is parsed again without the offer, then what follows it."""
        lines = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                lines += (name, b": ", value, b"\r\n")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join(lines) + b"\r\n" + rest)


def _head_too_large() -> Fault:
    return Fault(Code.TOO_LARGE, 431, f"The request head is larger than {HEAD_LIMIT_BYTES:,} bytes.")

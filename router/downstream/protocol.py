"""uvicorn's httptools protocol with a short way for the requests that reach engines.

A request for one of `endpoints` is served without ASGI; all others go through it, as uvicorn does it. Each finds a
`DirectStream`. What uvicorn and llhttp leave open is closed here: the size of a request head, the time a client may
take to send it, and what RFC 9112 wants refused because two readers could see different messages in it
(tests/router/test_framing.py). The sweep looks at the time limits; no connection has a timer.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import Mapping
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from router.core.errors import Code, error_json
from router.downstream.direct import EXTENSION, DirectStream, Endpoint
from router.downstream.light import Flow, Queue
from router.downstream.stream import Named, named

_USUAL = "accept accept-encoding accept-language authorization connection content-length content-type host user-agent"
_OPENAI = "arch async lang os package-version raw-response read-timeout retry-count runtime runtime-version timeout"
_NAMES = {
    spelling: name
    for name in (*_USUAL.encode().split(), *(b"x-stainless-%b" % name for name in _OPENAI.encode().split()))
    for spelling in (name, name.title())
}
"""Usual names of headers, also those of OpenAI's SDK: each once, for all open requests."""
HEAD_LIMIT_BYTES = 32 * 1024
"""Request line and headers; nginx and Envoy allow 32 and 60 KiB."""


class Fault(Exception):  # noqa: N818 - raised through the parser's callbacks, to end the parsing
    """Why a request is refused below ASGI."""

    def __init__(self, code: Code, status: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.message = message


NO_HTTP = Fault(Code.INVALID_REQUEST, 400, "This is not a valid HTTP/1.1 request.")


class Rules:
    """Of all connections of a server."""

    def __init__(
        self,
        endpoints: Mapping[bytes, Endpoint],
        *,
        connections_limit: int,
        requests_limit: int,
        headers_limit: int,
        request_limit_s: float,
    ) -> None:
        self.endpoints = endpoints
        """Served the short way, by path."""
        self.connections_limit = connections_limit
        self.requests_limit = requests_limit
        """Answers on one connection; the last of them says that it closes."""
        self.headers_limit = headers_limit
        self.request_limit_s = request_limit_s
        """From the first byte of a request to its last, and from connecting to the first byte."""


class RouterProtocol(HttpToolsProtocol):
    """One client connection."""

    # Slots keep uvicorn's own attributes few enough for a table of names that all connections share.
    __slots__ = (
        "fault",
        "head_bytes",
        "idle_since",
        "in_body",
        "read_bytes",
        "read_deadline",
        "requests",
        "rules",
        "streams",
    )

    def __init__(self, rules: Rules, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.rules = rules

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """In place of uvicorn's, which also asks for both addresses: half a kilobyte that only ASGI wants (_scope)."""
        self.connections.add(self)
        self.transport = transport
        self.flow = Flow(transport)
        self.pipeline = Queue()  # type: ignore[assignment]
        self.streams: Queue[DirectStream] = Queue()
        """The stream being served, then those of pipelined requests that wait behind it."""
        self.head_bytes: int | None = None
        """Bytes of an unfinished request head before the present read; None when no head is being read."""
        self.read_bytes = 0
        """Of the present read."""
        self.requests = 0
        self.in_body = False
        """The head of the last of `streams` was read, its body not yet to the end."""
        self.fault: Fault | None = None
        """Nothing more is read; said once the requests before it have been answered."""
        self.read_deadline = self.loop.time() + self.rules.request_limit_s
        """The request under way must be complete by then (loop time); 0 between requests. Checked by a sweep."""
        self.idle_since = 0.0
        """The last answer ended then."""
        if len(self.connections) > self.rules.connections_limit:
            message = f"This router has reached its limit of {self.rules.connections_limit:,} connections."
            self.refuse(Fault(Code.OVERLOADED, 503, message))

    def data_received(self, data: bytes) -> None:
        if self.fault is not None:
            return
        self.read_bytes = len(data)
        if self.parser is None:
            self._begin_to_parse()
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

    parser: Any
    """None while an answer is awaited and nothing of another request has come, from the next sweep on."""
    cycle: Any
    """The `DirectStream` of the request that was read last; None before the first."""

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.head_bytes = 0
        self.read_deadline = self.loop.time() + self.rules.request_limit_s

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers are dropped: merged into the headers they could name another key than the head did."""
        if self.head_bytes is not None:
            self.headers.append((_NAMES.get(name) or name.lower(), value))

    def on_headers_complete(self) -> None:
        headers, method, version = named(self.headers), self.parser.get_method(), self.parser.get_http_version()
        self._check_head(headers, method, version)
        self.head_bytes = None
        if self.parser.should_upgrade():  # the parser stops here; see _without_upgrade
            return
        self.requests += 1
        before: DirectStream | None = self.cycle
        self.cycle = stream = DirectStream(
            self,
            headers=headers,
            keep_alive=self.parser.should_keep_alive() and self.requests < self.rules.requests_limit,
            endpoint=self.rules.endpoints.get(self.url) if method == b"POST" else None,
        )
        if version == "1.0":
            stream.old, stream.keep_alive = True, False
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue":
            stream.waiting_for_100_continue = True
        if stream.endpoint is not None:
            self.headers = None  # type: ignore[assignment]  # the stream has them by name
        else:
            stream.scope = self._scope(method, version, stream)  # type: ignore[assignment]
        self.streams.append(stream)
        self.in_body = True
        if before is None or before.response_complete:
            self._start_asgi_task(stream, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((stream, self.app))

    def on_body(self, body: bytes) -> None:
        stream: DirectStream = self.cycle
        if self.in_body and not stream.response_complete:
            stream.take(body)
            if len(stream.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        if not self.in_body:
            return  # of a request that is parsed a second time
        self.cycle.taken()
        self.in_body = False
        self.read_deadline = 0.0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        assert isinstance(cycle, DirectStream)
        endpoint = cycle.endpoint
        way = cycle.run_asgi(app) if endpoint is None else endpoint.serve(cycle.headers, cycle)
        self.tasks.add(self.loop.create_task(way))  # it takes itself out, which saves a callback

    def on_response_complete(self) -> None:
        if self.streams:
            self.streams.popleft()
        self.idle_since = self.loop.time()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
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
        """True, and ended, where the client took too long to send its request, or to begin another one. One that waits
        for its answer needs no parser meanwhile."""
        if self.read_deadline:
            if now < self.read_deadline:
                return False
            message = f"The request did not arrive within {self.rules.request_limit_s:g} s."
            self.refuse(Fault(Code.BODY_TIMEOUT, 408, message))
            return True
        if self.streams:
            if self.head_bytes is None and not self.in_body:  # it stands between two requests, and holds a kilobyte
                self.parser = None
            return False
        if now < self.idle_since + self.timeout_keep_alive:
            return False
        self.transport.close()
        return True

    def _say(self, fault: Fault) -> None:
        body = error_json(fault.code, fault.message)
        head = b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (STATUS_LINE[fault.status], len(body)) + body)
        self.transport.close()

    def _check_head(self, headers: Named, method: bytes, version: str) -> None:
        """What RFC 9112 wants refused and the parser lets pass."""
        if len(self.headers) > self.rules.headers_limit:
            raise Fault(Code.TOO_LARGE, 431, f"The request has more than {self.rules.headers_limit} header lines.")
        if version not in ("1.1", "1.0"):
            raise Fault(Code.INVALID_REQUEST, 505, "This router speaks HTTP/1.1 and HTTP/1.0.")
        if b"host" not in headers:
            if version == "1.1":
                raise _one_host()
        elif len(headers) < len(self.headers) and sum(name == b"host" for name, _ in self.headers) > 1:
            raise _one_host()
        if b"#" in self.url or method == b"CONNECT":
            raise Fault(Code.INVALID_REQUEST, 400, "This request target is not served here.")
        if b"transfer-encoding" in headers:
            self._check_coding(version)
        if (self.head_bytes or 0) + self.read_bytes > HEAD_LIMIT_BYTES and self._head_size() > HEAD_LIMIT_BYTES:
            raise _head_too_large()

    def _head_size(self) -> int:
        """What was read with a head may be its body: this is the head's own."""
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _check_coding(self, version: str) -> None:
        """The parser takes any list that ends in `chunked` and leaves the rest undone, and takes it from HTTP/1.0."""
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if version != "1.1" or any(value.strip(b" \t").lower() != b"chunked" for value in codings):
            raise Fault(Code.INVALID_REQUEST, 501, "Of transfer codings only `chunked` is served, in HTTP/1.1.")

    def _scope(self, method: bytes, version: str, stream: DirectStream) -> dict[str, Any]:
        """For ASGI, as uvicorn makes it."""
        target: Any = httptools.parse_url(self.url)  # its query may be None, which its types deny
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": get_local_addr(self.transport),
            "client": get_remote_addr(self.transport),
            "scheme": "https" if is_ssl(self.transport) else "http",
            "method": method.decode("ascii"),
            "root_path": "",
            "path": urllib.parse.unquote(target.path.decode("ascii")),
            "raw_path": target.path,
            "query_string": target.query or b"",
            "headers": self.headers,
            "state": {},
            "extensions": {EXTENSION: {"stream": stream}},
        }

    def _without_upgrade(self, rest: bytes) -> None:
        """Serve a request that offers an upgrade (`h2c` from Java's HttpClient) as if it had not.

        httptools takes what follows such a head for another protocol and drops it, body included; the next read would
        then be parsed as a new request. So the head is parsed again without the offer, then what follows it."""
        lines = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                lines += (name, b": ", value, b"\r\n")
        self._begin_to_parse()
        self.data_received(b"".join(lines) + b"\r\n" + rest)

    def _begin_to_parse(self) -> None:
        """As uvicorn does it for a new connection."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)


def _one_host() -> Fault:
    return Fault(Code.INVALID_REQUEST, 400, "A request needs exactly one Host header.")


def _head_too_large() -> Fault:
    return Fault(Code.TOO_LARGE, 431, f"The request head is larger than {HEAD_LIMIT_BYTES:,} bytes.")

"""A request and its answer with nothing between the walk and the client's transport.

An ASGI `send` per token costs more than the rest of the relay together, and uvicorn's scope, cycle, events and timers
were a twelfth of a plain request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from router.downstream.light import Signal
from router.downstream.stream import (
    LET_GO,
    ClientStream,
    Headers,
    Named,
    _drop,
    _ignore,
    declared_length,
    read_body,
    too_large,
)

if TYPE_CHECKING:
    from router.downstream.protocol import RouterProtocol

log = logging.getLogger(__name__)

EXTENSION = "switchyard.stream"
"""Where a request that came through ASGI finds its stream: `scope["extensions"][EXTENSION]["stream"]`."""


class Endpoint(Protocol):
    """Serves POSTs to one path."""

    def serve(self, headers: Named, stream: ClientStream) -> Coroutine[Any, Any, None]: ...


class DirectStream(RequestResponseCycle):
    """One request, and its response written straight to the client's transport. The contract is `ClientStream`'s.

    To uvicorn it is the cycle of the request, so that any ASGI application can be run in it. What uvicorn sets anew for
    each request, and few requests change, is set here for all of them."""

    __slots__ = (
        "_chunked",
        "_event",
        "_head",
        "_loop",
        "_task",
        "body",
        "chunks",
        "default_headers",
        "endpoint",
        "flow",
        "gone",
        "headers",
        "keep_alive",
        "more_body",
        "on_lost",
        "on_pause",
        "on_response",
        "on_resume",
        "response_complete",
        "started",
        "tasks",
        "transport",
    )

    logger: ClassVar = logging.getLogger("uvicorn.error")  # type: ignore[misc]
    access_log = False
    disconnected = False
    waiting_for_100_continue = False
    response_started = False
    chunked_encoding: bool | None = None
    expected_content_length = 0
    old = False
    """HTTP/1.0, which knows no chunks."""

    def __init__(
        self,
        connection: RouterProtocol,
        *,
        headers: Named,
        keep_alive: bool,
        endpoint: Endpoint | None = None,
    ) -> None:
        self.gone = False
        self.started = False
        self.on_pause: Callable[[], None] = _ignore
        self.on_resume: Callable[[], None] = _ignore
        self.on_lost: Callable[[], None] | None = None
        self.chunks: Callable[[bytes], None] | None = None
        self.headers = headers
        self.endpoint = endpoint
        """None for a request that goes through ASGI."""
        self.keep_alive = keep_alive
        self.transport = connection.transport
        self.flow = connection.flow
        self.default_headers = connection.server_state.default_headers
        self.tasks = connection.server_state.tasks
        """What the server waits for when it leaves."""
        self.on_response = connection.on_response_complete
        self.body: bytes | bytearray = b""  # type: ignore[assignment]
        self.more_body = True
        self.response_complete = False
        self._head = b""
        self._chunked = False
        self._loop = connection.loop
        self._task: asyncio.Task[Any] | None = None
        self._event: Signal | None = None

    @property
    def message_event(self) -> Signal:  # type: ignore[override]
        """Made when somebody waits for more of the body; what came before is there to be taken at once."""
        if self._event is None:
            self._event = Signal()
            self._event.set()
        return self._event

    @property
    def paused(self) -> bool:
        return self.flow.write_paused

    def take(self, part: bytes) -> None:
        """A part of the body; in most requests all of it."""
        if not self.body:
            self.body = part
        else:
            if isinstance(self.body, bytes):
                self.body = bytearray(self.body)
            self.body += part
        if self._event is not None:
            self._event.set()

    def taken(self) -> None:
        """The body is complete."""
        self.more_body = False
        if self._event is not None:
            self._event.set()

    async def run_asgi(self, app: Any) -> None:
        try:
            await super().run_asgi(app)
        finally:
            self.tasks.discard(asyncio.current_task())
            self.scope.clear()  # type: ignore[attr-defined]  # it refers to this stream

    async def serve(self, handler: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run the handler; a client that leaves cancels it, and that is no error."""
        task = self._task = asyncio.current_task(self._loop)  # asked without it, it asks the kernel for the process
        assert task is not None
        try:
            if self.disconnected:
                self.gone = True
                return
            await handler(*arguments)
            if not (self.response_complete or self.gone):
                raise RuntimeError("a request was left without the end of its answer")
        except asyncio.CancelledError:
            if not self.gone:
                raise
            task.uncancel()
        except Exception:
            log.exception("a connection is closed")
            self.transport.close()
        finally:
            self._task = None
            self.tasks.discard(task)
            self.on_response = _ignore  # it refers to the connection, which refers to this stream

    async def read_body(self, limit_bytes: int) -> bytes:
        headers, self.headers = self.headers, LET_GO
        if not self.more_body:  # came with the head in one read: the usual case
            if len(self.body) > limit_bytes:
                raise too_large(limit_bytes)
            body, self.body = bytes(self.body), b""
            return body
        return await read_body(self.receive, declared_bytes=declared_length(headers), limit_bytes=limit_bytes)  # type: ignore[arg-type]

    def start(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        self.response_started = self.started = True
        self.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        for name, value in (*self.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        if length is not None:
            lines.append(b"content-length: %d\r\n" % length)
        elif self.old:
            self.keep_alive = False  # the end of the connection is the end of the body
        else:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        self._head = b"".join(lines)  # goes out with the first bytes of the body, in one write

    def write(self, data: bytes) -> None:
        if self.gone:
            return
        if self._head:
            self.transport.write(self._head + self._framed(data))
            self._head = b""
            if self._chunked:
                self.chunks = self.transport.write
        elif self._chunked:
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self.transport.write(data)

    def end(self, data: bytes = b"") -> None:
        if self.gone:
            return
        last = b"0\r\n\r\n" if self._chunked else b""
        if rest := self._head + (self._framed(data) if data else b"") + last:
            self.transport.write(rest)
        self.response_complete = True
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def cut(self, data: bytes) -> None:
        self.keep_alive = False
        self.end(data)
        self.gone, self.on_lost, self.chunks = True, None, _drop
        if self.transport.get_write_buffer_size():  # half open, or too slow: closing would wait for it
            self.transport.abort()

    def lost(self) -> None:
        """The connection is gone: wake whoever serves the request, wherever it waits."""
        self.gone, self.chunks = True, _drop
        if self.on_lost is not None:
            self.on_lost()
        elif self._task is not None:
            self._task.cancel("client left")

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

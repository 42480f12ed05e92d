"""Workers of one parent share a port, so a client that comes back may reach another one than the one that keeps its
stream. The handle names the process, and each worker also serves on a Unix socket of that name: who is asked passes
the request on, and its answer back, over the same connection class that speaks to engines.

The sockets are abstract (Linux): no file to clean up, no path too long. Both ends look at the other's user id, because
anybody on the host may bind and connect to such a name.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from collections.abc import Callable

from router.answer import broken_answer
from router.call import Call
from router.core.errors import Code
from router.downstream.auth import bearer
from router.downstream.stream import ClientStream
from router.kept.table import unknown
from router.upstream.connection import EngineConnection, Headers

PROCESS = re.compile(r"[0-9a-f]{8}")
BACKLOG = 128
_CREDENTIALS = struct.Struct("3i")
_OF_THE_HOP = (b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"date")


class Siblings:
    """`process` is the own name."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._server: asyncio.Server | None = None

    async def open(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Serve siblings by the protocol that serves clients."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(_name(self._process))
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Door(protocol), sock=listener, backlog=BACKLOG
        )

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def pass_on(self, call: Call, client: ClientStream, process: str) -> None:
        """Serve the client from another process. Raises Refused when there is none of this name."""
        if self._server is None or not PROCESS.fullmatch(process):
            raise unknown()
        passage = Passage(client)
        connection = await _connect(process)
        try:
            client.on_pause, client.on_resume = connection.pause, connection.resume
            connection.send(_request(call), b"", passage)
            await passage.done.wait()
            if not client.started:
                raise unknown()
        finally:
            connection.abort()


class Passage:
    """A sibling's answer on its way to the client."""

    def __init__(self, client: ClientStream) -> None:
        self.done = asyncio.Event()
        self._client = client

    def head(self, status: int, headers: Headers) -> None:
        length = int(dict(headers).get(b"content-length", b"-1"))
        kept = [(name, value) for name, value in headers if name not in _OF_THE_HOP]
        self._client.start(status, kept, length=length if length >= 0 else None)

    def body(self, data: bytes) -> None:
        self._client.write(data)

    def end(self) -> None:
        self._client.end()
        self.done.set()

    def lost(self, error: Exception | None) -> None:
        """The process that keeps the stream is gone, and the stream with it."""
        if self._client.started:
            self._client.end(broken_answer(Code.STREAM_GONE, "the process that kept it has ended").data)
        self.done.set()


class _Door(asyncio.Protocol):
    """Lets in who is of our user."""

    def __init__(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._protocol = protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if _user_at(transport.get_extra_info("socket")) != os.getuid():
            transport.close()
            return
        protocol = self._protocol()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


async def _connect(process: str) -> EngineConnection:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    end.setblocking(False)
    try:
        end.connect(_name(process))
        if _user_at(end) != os.getuid():
            raise PermissionError("the name is taken by another user")
    except OSError as error:
        end.close()
        raise unknown() from error
    _, connection = await asyncio.get_running_loop().create_unix_connection(lambda: EngineConnection(process), sock=end)
    return connection


def _request(call: Call) -> bytes:
    lines = [
        b"POST %b HTTP/1.1\r\nhost: sibling\r\ncontent-length: 0\r\nconnection: close\r\n" % call.path.encode(),
        b"authorization: Bearer %b\r\n" % bearer(call.headers),
        b"last-event-id: %b\r\n\r\n" % call.last_event_id,
    ]
    return b"".join(lines)


def _name(process: str) -> bytes:
    return b"\0switchyard-%b" % process.encode()


def _user_at(end: socket.socket) -> int:
    """Who made the other end."""
    _, user, _ = _CREDENTIALS.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(user)

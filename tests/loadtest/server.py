"""A server that says exactly what a test tells it to, in the pieces it tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from loadtest.baselines.engine import Engine, Serving
from loadtest.client import Client

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Script(asyncio.Protocol):
    """Answers each request with the next list of pieces; b"" closes the connection."""

    def __init__(self, answers: Sequence[Sequence[bytes]], seen: list[bytes]) -> None:
        self._answers = iter(answers)
        self._seen = seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._seen.append(data)
        loop = asyncio.get_running_loop()
        for number, piece in enumerate(next(self._answers, [])):
            loop.call_later(0.003 * number, self._write, piece)

    def _write(self, piece: bytes) -> None:
        if self._transport.is_closing():
            return
        if piece:
            self._transport.write(piece)
        else:
            self._transport.close()


@asynccontextmanager
async def serving(*answers: Sequence[bytes], seen: list[bytes] | None = None) -> AsyncIterator[Client]:
    """A client of a server whose every connection gives these answers in order."""
    loop = asyncio.get_running_loop()
    asked = [] if seen is None else seen
    server = await loop.create_server(lambda: Script(answers, asked), "127.0.0.1", 0)
    client = Client("127.0.0.1", server.sockets[0].getsockname()[1], api_key="sk-test")
    try:
        yield client
    finally:
        client.close()
        await closed(server)


@asynccontextmanager
async def engine(model: str = "bench") -> AsyncIterator[Client]:
    """The cheapest engine in this process, one event a millisecond, and a client of it."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(Serving, Engine(model)), "127.0.0.1", 0)
    client = Client("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        await client.post("/pace", {"interval_s": 0.001})
        yield client
    finally:
        client.close()
        await closed(server)


async def closed(server: asyncio.Server) -> None:
    """No more connections, and the ends of those there were have been heard."""
    server.close()
    await server.wait_closed()
    for _ in range(5):
        await asyncio.sleep(0.002)

"""The least that a proxy in Python can do: uvloop, httptools on both sides, and each read written on as it came.

A baseline for compare.py, `python -m loadtest.baselines.passthrough_bare PORT ENGINE...`. What it adds to `direct` is
the price of the language and the kernel; what Switchyard adds to that are keys, decisions, resumes and records. It
trusts both sides: no limits, no time-outs, no errors.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
from typing import Any, cast

import httptools
import uvloop


class Engine(asyncio.Protocol):
    """One kept connection."""

    def __init__(self, address: str, idle: list[Engine]) -> None:
        self.address = address
        self.idle = idle
        self.client: Client | None = None
        self.parser: Any = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.client is not None:
            self.client.transport.write(data)
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self.client is not None:
            self.client.engine, self.client = None, None
            self.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self.idle:
            self.idle.remove(self)
        if self.client is not None:
            self.client.transport.abort()


class Client(asyncio.Protocol):
    def __init__(self, pools: itertools.cycle[tuple[str, list[Engine]]]) -> None:
        self.pools = pools
        self.engine: Engine | None = None
        self.parts: list[bytes] = []
        self.parser: Any = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.parts.append(data)
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        request, self.parts = b"".join(self.parts), []
        address, idle = next(self.pools)
        if idle:
            self.ask(idle.pop(), request)
        else:
            self.connecting = asyncio.get_running_loop().create_task(self.connect(address, idle, request))

    async def connect(self, address: str, idle: list[Engine], request: bytes) -> None:
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        _, engine = await loop.create_connection(lambda: Engine(address, idle), host, int(port))
        self.ask(engine, request)

    def ask(self, engine: Engine, request: bytes) -> None:
        self.engine, engine.client = engine, self
        engine.transport.write(request)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.engine is not None:
            self.engine.client = None
            self.engine.transport.abort()


async def serve(port: int, engines: list[str]) -> None:
    pools = itertools.cycle([(address, list[Engine]()) for address in engines])
    server = await asyncio.get_running_loop().create_server(lambda: Client(pools), "127.0.0.1", port, backlog=8192)
    gc.freeze()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2:]))

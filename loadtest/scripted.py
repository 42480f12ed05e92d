"""Engines whose every byte is decided: two of them, and a director who says how each request is answered.

Routers may ask either engine first. So a scene says what the first attempt of a request meets and what later ones meet,
wherever they arrive; faults of a whole engine (refused, silent) are those of the first engine. OpenAI's wire format,
little else: enough for any router that speaks to OpenAI-compatible engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec

MODEL = "scripted"
WORDS = ("one", " two", " three", " four", " five", " six")
TEXT = "".join(WORDS)
PACE_S = 0.02
DONE = b"data: [DONE]\n\n"


def event(delta: str, *, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": delta}, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return b"data: " + msgspec.json.encode(head | {"choices": [choice]}) + b"\n\n"


EVENTS = [*(event(word) for word in WORDS[:-1]), event(WORDS[-1], finish="stop")]


class Exchange:
    """One request that reached an engine."""

    def __init__(
        self, number: int, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ):
        self.number = number
        """Among the attempts of this scene, over both engines."""
        self.head, self.body = head, body
        self._reader, self._writer = reader, writer

    def begin(self) -> None:
        self._writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )

    async def send(self, *blocks: bytes) -> None:
        for block in blocks:
            self._writer.write(b"%x\r\n%b\r\n" % (len(block), block))
            await self._writer.drain()
            await asyncio.sleep(PACE_S)

    async def finish(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def play(self, *blocks: bytes) -> None:
        """A whole HTTP answer of these events."""
        self.begin()
        await self.send(*blocks)
        await self.finish()

    async def refuse(self, status: int, message: str, kind: str, *headers: str, code: str = "") -> None:
        error = {"message": message, "type": kind, "param": None, "code": code or status}
        await self.answer(status, msgspec.json.encode({"error": error}), *headers)

    async def answer(self, status: int, body: bytes, *headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}", *headers]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self._writer.drain()

    def cut(self) -> None:
        self._writer.transport.abort()

    async def abandoned(self) -> None:
        """Until the router has closed this connection."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65536):
                pass


Script = Callable[[Exchange], Awaitable[None]]


async def well(exchange: Exchange) -> None:
    await exchange.play(*EVENTS, DONE)


class Director:
    """What the attempts of a scene meet, in the order in which they come."""

    def __init__(self) -> None:
        self.scripts: Sequence[Script] = (well,)
        """By number of the attempt; the last also for all that follow."""
        self.by_engine: Mapping[int, Script] = {}
        """Instead, for an engine of its own habits."""
        self.attempts: list[int] = []
        """Numbers of the engines that were asked, in order."""

    def begin(self, *scripts: Script, by_engine: Mapping[int, Script] | None = None) -> None:
        self.scripts, self.by_engine = scripts or (well,), by_engine or {}
        self.next_request()

    def next_request(self) -> None:
        """Attempts are counted anew."""
        self.attempts = []

    def script(self, engine: int) -> Script:
        number = len(self.attempts)
        self.attempts.append(engine)
        return self.by_engine.get(engine) or self.scripts[min(number, len(self.scripts) - 1)]


class Engine:
    """Answers /v1/chat/completions as directed, and what routers like to ask beside it."""

    def __init__(self, number: int, director: Director) -> None:
        self.number = number
        self.port = 0
        self._director = director
        self._server: asyncio.Server | None = None
        self._deaf: list[socket.socket] = []
        self._busy = 0
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """From now on connections are refused."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            writer.transport.abort()

    async def fall_silent(self) -> None:
        """Connections are neither accepted nor refused: the queue of the port is full."""
        await self.stop()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await self._bind(listener)
        listener.listen(0)
        self._deaf = [listener]
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(("127.0.0.1", self.port))
            self._deaf.append(filler)

    async def _bind(self, listener: socket.socket) -> None:
        """The loop lets go of the port in its own time."""
        async with asyncio.timeout(5.0):
            while True:
                try:
                    listener.bind(("127.0.0.1", self.port))
                    return
                except OSError:
                    await asyncio.sleep(0.01)

    async def recover(self) -> None:
        for held in self._deaf:
            held.close()
        self._deaf = []
        if self._server is None:
            await self.start()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?im)^content-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                await self._serve(head, body, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        except RuntimeError:  # uvloop's word for writing to a connection that the router has closed
            if not writer.is_closing():
                raise
        finally:
            self._open.discard(writer)
            writer.close()

    async def _serve(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        number = len(self._director.attempts)
        exchange = Exchange(number, head, body, reader, writer)
        if not head.startswith(b"POST /v1/c"):
            await exchange.answer(200, self._aside(head))
            return
        self._busy += 1
        try:
            await self._director.script(self.number)(exchange)
        finally:
            self._busy -= 1

    def _aside(self, head: bytes) -> bytes:
        if b" /metrics" in head.partition(b"\r\n")[0]:
            return b"vllm:num_requests_running %d\nvllm:num_requests_waiting 0\n" % self._busy
        return msgspec.json.encode({"object": "list", "data": [{"id": MODEL, "object": "model"}]})


@asynccontextmanager
async def engines(count: int = 2) -> AsyncIterator[tuple[list[Engine], Director]]:
    director = Director()
    made = [Engine(number, director) for number in range(count)]
    try:
        for engine in made:
            await engine.start()
        yield made, director
    finally:
        for engine in made:
            await engine.recover()
            await engine.stop()

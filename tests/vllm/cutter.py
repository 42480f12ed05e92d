"""A TCP proxy in front of an engine that breaks chosen answers after chosen events, as engines break.

Which answer is told by its request id; a request may have a cut for each of its legs. Several proxies share one list of
cuts, so that it does not matter which engine a leg goes to. What each leg asked of its engine is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
import socket
import struct
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Self

DIED = (
    b'data: {"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root cause.", '
    b'"type": "InternalServerError", "param": null, "code": 500}}\n\n'
)
"""What vLLM says when its engine core dies; `[DONE]` follows."""
DONE = b"data: [DONE]\n\n"
GARBLED = b'data: {"id":"chatcmpl-1","choices":[{"ind\n\n'
EVENT_END = b"\n\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"
RESET = struct.pack("ii", 1, 0)


class How(enum.StrEnum):
    CLOSED = "closed"
    RESET = "reset"
    HALF = "half an event"
    ERROR = "error event"
    GARBLED = "garbled event"


@dataclass(frozen=True)
class Cut:
    after: int
    """Events."""
    how: How


@dataclass(frozen=True)
class Leg:
    path: str
    body: bytes


@dataclass
class Cuts:
    """What is to be cut, and what went by, by request id."""

    planned: dict[str, list[Cut]] = field(default_factory=dict)
    legs: dict[str, list[Leg]] = field(default_factory=lambda: defaultdict(list))
    done: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Cuts that happened: an answer may be over before its cut."""

    def next(self, request_id: str, leg: Leg) -> Cut | None:
        self.legs[request_id].append(leg)
        planned = self.planned.get(request_id)
        return planned.pop(0) if planned else None


class _Answer:
    """The bytes of one answer on their way, up to its cut."""

    def __init__(self, request_id: str, cut: Cut | None) -> None:
        self.request_id = request_id
        self._cut = cut
        self._raw = b""
        self._sent = 0
        self._events = 0
        self._seen = 0
        self.broken: How | None = None

    def feed(self, data: bytes) -> bytes:
        if self._cut is None:
            return data
        self._raw += data
        while (end := self._raw.find(EVENT_END, self._seen)) >= 0 and self.broken is None:
            begin, self._seen = self._seen, end + len(EVENT_END)
            self._events += 1
            self._try(self._cut, begin)
        return self._rest()

    def _try(self, cut: Cut, begin: int) -> None:
        """Break here if it is time: behind the event that ends here, or within it."""
        ends_chunk = self._raw[self._seen : self._seen + 2] == b"\r\n"
        if cut.how is How.HALF:
            if self._events == cut.after + 1:
                self._raw, self.broken = self._raw[: (begin + self._seen) // 2], cut.how
        elif self._events >= cut.after and ends_chunk:
            self._raw, self.broken = self._raw[: self._seen + 2] + _last_words(cut.how), cut.how

    def _rest(self) -> bytes:
        """What may go on now; an event that is to be cut in half waits until it is whole."""
        waits = self._cut is not None and self._cut.how is How.HALF and self._events == self._cut.after
        whole = self.broken is not None or not waits or self._raw.endswith(LAST_CHUNK)
        end = len(self._raw) if whole else self._seen
        out, self._sent = self._raw[self._sent : end], end
        return out


def _last_words(how: How) -> bytes:
    match how:
        case How.ERROR:
            return _chunk(DIED) + _chunk(DONE) + b"0\r\n\r\n"
        case How.GARBLED:
            return _chunk(GARBLED) + _chunk(DONE) + b"0\r\n\r\n"
        case _:
            return b""


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Cutter:
    """One proxy; `async with` it, and use its address as the engine's."""

    def __init__(self, engine_port: int, cuts: Cuts) -> None:
        self._engine_port = engine_port
        self._cuts = cuts
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open.values():
            writer.transport.abort()
        if self._open:
            await asyncio.wait(self._open)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._open.pop, task)
            stack.callback(writer.close)
            try:
                from_engine, to_engine = await asyncio.open_connection("127.0.0.1", self._engine_port)
            except OSError:
                return
            stack.callback(to_engine.close)
            answers: list[_Answer] = []
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(self._ask(reader, to_engine, answers))
                with contextlib.suppress(ConnectionError):
                    await self._answer(from_engine, writer, answers)
                asking.cancel()

    async def _ask(self, reader: asyncio.StreamReader, to_engine: asyncio.StreamWriter, answers: list[_Answer]) -> None:
        """Pass on requests; when the router closes, the engine is closed too."""
        async for head, body in _requests(reader):
            path = head.split(b" ", 2)[1].decode()
            request_id = _header(head, b"x-request-id")
            answers.append(_Answer(request_id, self._cuts.next(request_id, Leg(path, body))))
            to_engine.write(head + body)
        to_engine.close()

    async def _answer(
        self, from_engine: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: list[_Answer]
    ) -> None:
        while data := await from_engine.read(65536):
            answer = answers[-1]
            writer.write(answer.feed(data))
            await writer.drain()
            if answer.broken is not None:
                self._cuts.done[answer.request_id] += 1
                if answer.broken is How.RESET:
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    writer.transport.abort()
                return


async def _requests(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, bytes]]:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            yield head, await reader.readexactly(int(_header(head, b"content-length") or 0))


def _header(head: bytes, name: bytes) -> str:
    found = re.search(rb"(?im)^" + name + rb": (.*?)\r$", head)
    return found[1].decode() if found else ""

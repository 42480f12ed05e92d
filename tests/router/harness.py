"""A real router on real sockets over an in-process registry, and engines whose every byte the test decides."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Self

import httpx
import msgspec

from router.app import RouterApp
from router.listen import listen
from router.settings import RouterSettings
from wire.memory import MemoryRegistry
from wire.records import ApiKey, ModelState, Record, Replica, Task, Tenant, encode, key
from wire.usage import UsageRecord, decode_line

KEY = "sk-sy-test"
MODEL = "tiny"


def event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def chat_event(text: str, *, finish: str | None = None) -> bytes:
    reason = f'"{finish}"' if finish else "null"
    return event(
        '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny","choices":'
        f'[{{"index":0,"delta":{{"content":"{text}"}},"logprobs":null,"finish_reason":{reason}}}]}}'
    )


USAGE = event(
    '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[],'
    '"usage":{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}'
)
DONE = b"data: [DONE]\n\n"
ANSWER = [chat_event("one"), chat_event(" two"), chat_event(" three", finish="stop"), USAGE, DONE]
WHOLE = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"one two three"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3}}'
)


class Exchange:
    """One request that reached an engine, and the engine's side of the connection."""

    def __init__(self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head = head
        self.body = body
        self.reader = reader
        self.writer = writer

    def header(self, name: str) -> str:
        found = re.search(rf"(?im)^{name}: (.*?)\r$", self.head.decode())
        return found[1] if found else ""

    def start_stream(self) -> None:
        self.writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )

    async def send(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    async def stream(self, events: list[bytes], *, end: bool = True) -> None:
        self.start_stream()
        for data in events:
            await self.send(data)
        if end:
            self.writer.write(b"0\r\n\r\n")

    async def answer(self, status: int, body: bytes, *headers: str) -> None:
        extra = "".join(f"{h}\r\n" for h in headers)
        self.writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{extra}\r\n".encode()
            + body
        )
        await self.writer.drain()

    def cut(self) -> None:
        """Close without an end, as a killed engine does."""
        self.writer.transport.abort()

    async def client_left(self) -> None:
        """Return when the router has closed this connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


Script = Callable[[Exchange], Awaitable[None]]


class Engine:
    """An HTTP server that plays a script for each request; `exchanges` is what it was asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.open = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"(?im)^content-length: (\d+)", head)[1])  # type: ignore[index]
                exchange = Exchange(head, await reader.readexactly(length), reader, writer)
                self.exchanges.append(exchange)
                await self.script(exchange)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


class Router:
    """What a test does with the router under test."""

    def __init__(self, app: RouterApp, registry: MemoryRegistry, client: httpx.AsyncClient) -> None:
        self.app = app
        self.registry = registry
        self.client = client
        # Asked once: a router that has begun to leave has no listener to ask.
        self.port = int(app.listener.getsockname()[1])

    async def put(self, *records: Record) -> None:
        for record in records:
            await self.registry.put(key(record), encode(record))

    async def add_engine(self, engine: Engine, *, name: str = "", **fields: object) -> Replica:
        replica = Replica(
            replica=name or f"n-{engine.port}/0".replace("/", "."),
            node=f"n-{engine.port}",
            region="local",
            model=MODEL,
            address=engine.address,
            state=ModelState.READY,
            generation=1,
        )
        replica = msgspec.structs.replace(replica, **fields)
        await self.put(replica)
        await until(lambda: self.app.watch.view.fleet.replicas.get(replica.replica) == replica)
        return replica

    async def chat(
        self, *, stream: bool = True, headers: dict[str, str] | None = None, **body: object
    ) -> httpx.Response:
        return await self.client.post(
            "/v1/chat/completions", json={**chat_body(stream=stream), **body}, headers=headers or {}
        )

    def records(self) -> list[UsageRecord]:
        return [
            decode_line(line)
            for path in sorted(Path(self.app.settings.data_dir).glob("usage-*.jsonl"))
            for line in path.read_bytes().splitlines()
        ]

    def counts(self) -> dict[str, int]:
        """Everything that must be zero when nothing is under way."""
        return {
            "open requests": self.app.instruments.open_calls,
            "in flight": sum(self.app.dispatcher.in_flight().values()),
            "busy connections": self.app.pool.busy_count,
            "active relays": len(self.app.attempts.active),
            "held": self.app.news.waiting,
            "queued": self.app.gate.waiting,
            "queues": len(self.app.gate.lengths()),
        }


def chat_body(*, stream: bool = True) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": stream}


async def until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running_router(**settings: object) -> AsyncIterator[Router]:
    registry = MemoryRegistry()
    with tempfile.TemporaryDirectory() as directory:
        defaults: dict[str, object] = {"drain_notice_s": 0.0, "drain_limit_s": 1.0, "log_level": "warning"}
        chosen = RouterSettings(port=0, data_dir=directory, **(defaults | settings))  # type: ignore[arg-type]
        sha256 = hashlib.sha256(KEY.encode()).hexdigest()
        for record in (Tenant(tenant="acme"), ApiKey(sha256=sha256, tenant="acme", label="test")):
            await registry.put(key(record), encode(record))
        app = RouterApp(chosen, registry=registry, listener=listen(chosen.host, chosen.port))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(app.run())
            await until(lambda: app.watch.view.synced and app.server.started)
            port = app.listener.getsockname()[1]
            headers = {"authorization": f"Bearer {KEY}"}
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=20) as client:
                yield Router(app, registry, client)
            app.shutdown.ask()
            await task


@contextlib.asynccontextmanager
async def router_with(*scripts: Script, **settings: object) -> AsyncIterator[tuple[Router, list[Engine]]]:
    """A router and one engine per script."""
    async with contextlib.AsyncExitStack() as stack:
        router = await stack.enter_async_context(running_router(**settings))
        engines = [await stack.enter_async_context(Engine(script)) for script in scripts]
        for engine in engines:
            await router.add_engine(engine)
        yield router, engines


async def plays(exchange: Exchange) -> None:
    """A healthy engine: the stream, or the whole answer."""
    if msgspec.json.decode(exchange.body).get("stream"):
        await exchange.stream(ANSWER)
    else:
        await exchange.answer(200, WHOLE)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


__all__ = ["ANSWER", "DONE", "KEY", "MODEL", "USAGE", "WHOLE", "Engine", "Exchange", "Router", "Task"]

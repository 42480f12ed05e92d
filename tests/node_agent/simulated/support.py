"""An engine in the test's own loop, and small ways to talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from node_agent.engines.simulated.host import Host
from node_agent.engines.simulated.profiles import PROFILES
from node_agent.engines.simulated.replica import Config, Replica

INSTANT = PROFILES["instant"]


class Running:
    """A started engine with a client."""

    def __init__(self, host: Host, client: httpx.AsyncClient) -> None:
        self.host = host
        self.client = client
        self.writers: list[asyncio.StreamWriter] = []

    @property
    def replica(self) -> Replica:
        return self.host.replica

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return await self.client.post(path, json=body, headers=headers)

    async def get(self, path: str) -> Any:
        return (await self.client.get(path)).json()

    async def fault(self, kind: str, **more: Any) -> None:
        response = await self.post("/sim/faults", {"kind": kind, **more})
        assert 200 == response.status_code, response.text

    async def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = await self.get("/sim/stats")
        return stats

    async def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """Decoded events of a stream to its end, `[DONE]` as that string."""
        async with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            assert 200 == response.status_code, await response.aread()
            lines = [line async for line in response.aiter_lines()]
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [part if part == "[DONE]" else json.loads(part) for part in data]

    async def connect(
        self, path: str, body: dict[str, Any], *, receive_bytes: int = 0
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection with a request written to it; with `receive_bytes`, one that reads slowly."""
        payload = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(payload)}\r\n\r\n"
        return await self.send(head.encode() + payload, receive_bytes=receive_bytes)

    async def send(self, data: bytes, *, receive_bytes: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.connect(("127.0.0.1", self.host.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=receive_bytes or 2**16)
        self.writers.append(writer)
        writer.write(data)
        return reader, writer

    async def close(self) -> None:
        for writer in self.writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def engine(**config: Any) -> AsyncIterator[Running]:
    ready = asyncio.Event()
    host = Host(Config(**{"profile": INSTANT, "model": "sim", **config}), lambda _host, _port: ready.set())
    async with asyncio.TaskGroup() as group:
        task = group.create_task(host.run())
        await ready.wait()
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{host.port}", timeout=20) as client:
                running = Running(host, client)
                try:
                    yield running
                finally:
                    await running.close()
        finally:
            await host.stop()
            task.cancel()


async def until(truth: Callable[[], Awaitable[bool] | bool], limit_s: float = 10.0) -> None:
    """Wait for something that happens by itself; the limit is only there so that a failure ends."""
    async with asyncio.timeout(limit_s):
        while True:
            found = truth()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.005)


def chat(text: str = "Hello", **more: Any) -> dict[str, Any]:
    return {"model": "sim", "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def completion(prompt: Any = "Hello", **more: Any) -> dict[str, Any]:
    return {"model": "sim", "prompt": prompt, "temperature": 0, **more}


def text_of(events: list[Any]) -> str:
    """Of the first choice, chat or completion."""
    parts = [e["choices"][0] for e in events if isinstance(e, dict) and e.get("choices")]
    return "".join((p["delta"].get("content") or "") if "delta" in p else p["text"] for p in parts if p["index"] == 0)


def ids_of(events: list[Any]) -> list[int]:
    parts = [e["choices"][0] for e in events if isinstance(e, dict) and e.get("choices")]
    return [i for p in parts for i in p.get("token_ids") or []]

"""What a plain (not streamed) request costs the router itself, without sockets: `python -m loadtest.bench_plain`.

A whole router is made in this process: keys, validation, admission, decision, journal, metrics, spans. Its client and
its engines are transports that answer at once, so what is left out is the kernel and the loop's own reading and
writing. Where time is too noisy, instructions are the difference of two runs under `valgrind --tool=callgrind`, with
`--rounds 1` and two values of `--requests`.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import hashlib
import json
import pstats
import socket
import sys
import tempfile
import time
from typing import Any, cast

import uvloop

from loadtest.yardstick import yardstick_us
from router.app import RouterApp
from router.core.model import Fleet
from router.fleet.view import View, served_models
from router.garbage import keep_out_of_the_way
from router.settings import RouterSettings
from router.upstream.connection import EngineConnection
from wire.memory import MemoryRegistry
from wire.records import ApiKey, ModelState, Node, Replica, Tenant

KEY = "sk-bench"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 16}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 500, "completion_tokens": 16, "total_tokens": 516},
    }
).encode()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
PROMPT_BYTES = 2000


class Wire:
    """A transport without a kernel: hands what is written to a callback."""

    def __init__(self, on_write: Any) -> None:
        self._on_write = on_write

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 1) if name in ("sockname", "peername") else default

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self._on_write(data)

    def writelines(self, parts: tuple[bytes, ...]) -> None:
        self._on_write(b"".join(parts))

    def ignore(self, *_: object) -> None: ...

    set_protocol = pause_reading = resume_reading = abort = close = set_write_buffer_limits = ignore


def request(*, stream: bool = False) -> bytes:
    system = "You are a careful assistant. " * (PROMPT_BYTES // 29)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Tell me of switchyards."}]
    asked = {"model": "m", "messages": messages, "temperature": 0.7, "max_tokens": 16}
    body = json.dumps({**asked, "stream": True} if stream else asked).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost:8000\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def view(replicas: int) -> View:
    """One model on so many nodes, and one key."""
    names = [f"r{n}" for n in range(replicas)]
    nodes = {name: Node(node=name, region="local", address="127.0.0.1:1") for name in names}
    made = {
        name: Replica(
            replica=name,
            node=name,
            region="local",
            model="m",
            address=f"127.0.0.1:{n + 2}",
            state=ModelState.READY,
            token_ids=True,
        )
        for n, name in enumerate(names)
    }
    fleet = Fleet(1, nodes, made, {}, {"t": Tenant(tenant="t", models=("*",))})
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    return View(fleet=fleet, keys={digest: ApiKey(sha256=digest, tenant="t")}, models=served_models(fleet), synced=True)


class Bench:
    def __init__(self, directory: str, replicas: int) -> None:
        loop = asyncio.get_running_loop()
        self._listener = socket.create_server(("127.0.0.1", 0))
        settings = RouterSettings(data_dir=directory, connection_requests_limit=1 << 30)
        self.app = RouterApp(settings, registry=MemoryRegistry(), listener=self._listener)
        self.app.watch.view = view(replicas)
        self.app.dispatcher.apply(self.app.watch.view.fleet, loop.time())
        self.app.pool._idle_limit_s = 1e9
        for replica in self.app.watch.view.fleet.replicas.values():
            self._engine(replica.address)
        server = self.app.server
        self.client = server.protocol()
        self.client.connection_made(cast(asyncio.Transport, Wire(self._answered)))
        self._request = request()
        self._waiter: asyncio.Future[bytes] = loop.create_future()

    async def ask(self) -> bytes:
        self._waiter = asyncio.get_running_loop().create_future()
        self.client.data_received(self._request)
        return await self._waiter

    def close(self) -> None:
        self.app.journal.close()
        self._listener.close()

    def _answered(self, data: bytes) -> None:
        self._waiter.set_result(data)

    def _engine(self, address: str) -> None:
        connection = EngineConnection(address)
        soon = asyncio.get_running_loop().call_soon
        wire = Wire(lambda data: soon(connection.data_received, HEAD + ANSWER))
        connection.connection_made(cast(asyncio.BaseTransport, wire))
        self.app.pool.release(connection)


async def measure(*, requests: int, rounds: int, replicas: int) -> float:
    """Microseconds of CPU per request, in the best round: what others do on the machine only adds."""
    best = float("inf")
    keep_out_of_the_way()
    with tempfile.TemporaryDirectory(prefix="bench-plain-") as directory:
        bench = Bench(directory, replicas)
        answer = await bench.ask()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the router answered {answer[:300]!r}")
        for _ in range(rounds):
            start = time.process_time()
            for _ in range(requests):
                await bench.ask()
            best = min(best, (time.process_time() - start) / requests * 1e6)
        bench.close()
    return best


def plain_us(*, requests: int = 300, rounds: int = 15, replicas: int = 2) -> float:
    return uvloop.run(measure(requests=requests, rounds=rounds, replicas=replicas))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench_plain", description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="also print where the time goes (cProfile)")
    arguments = parser.parse_args()
    size = {"requests": arguments.requests, "rounds": arguments.rounds, "replicas": arguments.replicas}
    cost = plain_us(**size)
    print(f"{cost:.1f} us of CPU per plain request, {cost / yardstick_us():.2f} yardsticks")
    if arguments.profile:
        with cProfile.Profile() as profile:
            plain_us(**size)
        pstats.Stats(profile).sort_stats("tottime").print_stats(60)
    return 0


if __name__ == "__main__":
    sys.exit(main())

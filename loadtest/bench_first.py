"""What a stream's first event waits for the router itself, without sockets: `python -m loadtest.bench_first`.

Two waits: from the bytes of a request to those for the engine, and from the engine's first bytes to the client's; what
the router does before, between and after is nobody's wait. Warm is one request after another. Cold: before each wait
16 MB are read, so the processor's caches have forgotten the router, as they have where requests are rare or neighbours
many; how much is left in the last cache is a matter of the host, so cold figures differ from run to run. Medians.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple, cast

import uvloop

from loadtest.bench_plain import Bench, Wire, request
from router.garbage import keep_out_of_the_way
from router.upstream.connection import EngineConnection

_CHUNK = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    b'"delta":{"content":"word"},"logprobs":null,"finish_reason":%b,"token_ids":[1808]}]%b}\n\n'
)
_FIRST = _CHUNK % (b"null", b',"prompt_token_ids":[%b]' % b",".join(b"%d" % token for token in range(1000, 1500)))
_USAGE = b'{"prompt_tokens":500,"total_tokens":502,"completion_tokens":2}'
_REST = b"%bdata: %b\n\ndata: [DONE]\n\n" % (
    _CHUNK % (b'"length"', b""),
    b'{"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":%b}' % _USAGE,
)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_CACHES = bytes(16 << 20)


class Waits(NamedTuple):
    """Microseconds."""

    to_engine: float
    to_client: float


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class StreamBench(Bench):
    """Notes when the request came, when it left, when the first event came and when it left."""

    def __init__(self, directory: str, replicas: int, *, before: Callable[[], object]) -> None:
        self._before = before
        self.times: list[float] = []
        super().__init__(directory, replicas)
        self._request = request(stream=True)

    async def ask(self) -> bytes:
        self._before()
        self.times = [perf_counter()]
        return await super().ask()

    def _answered(self, data: bytes) -> None:
        self.times.append(perf_counter())
        if data.endswith(b"0\r\n\r\n"):
            super()._answered(data)

    def _engine(self, address: str) -> None:
        connection, loop = EngineConnection(address), asyncio.get_running_loop()

        def first() -> None:
            self._before()
            self.times.append(perf_counter())
            connection.data_received(_HEAD + chunk(_FIRST))
            loop.call_soon(connection.data_received, chunk(_REST) + b"0\r\n\r\n")

        def asked(data: bytes) -> None:
            self.times.append(perf_counter())
            loop.call_soon(first)

        connection.connection_made(cast(asyncio.BaseTransport, Wire(asked)))
        self.app.pool.release(connection)


async def measure(*, requests: int, before: Callable[[], object], replicas: int = 2) -> Waits:
    keep_out_of_the_way()
    found: list[Waits] = []
    with tempfile.TemporaryDirectory(prefix="bench-first-") as directory:
        bench = StreamBench(directory, replicas, before=before)
        for _ in range(requests):
            await bench.ask()
            came, left, heard, told, *_ = bench.times
            found.append(Waits(1e6 * (left - came), 1e6 * (told - heard)))
        bench.close()
    half = cast(Any, found[len(found) // 2 :])  # what was learned and filled first is behind us
    return Waits(*map(statistics.median, zip(*half, strict=True)))


def main() -> int:
    for name, before, requests in (("warm", int, 2000), ("cold", lambda: _CACHES.count(b"x"), 400)):
        waits = uvloop.run(measure(requests=requests, before=cast(Callable[[], object], before)))
        print(f"{name}: {waits.to_engine:.0f} us to the engine, {waits.to_client:.0f} us back to the client")
    return 0


if __name__ == "__main__":
    sys.exit(main())

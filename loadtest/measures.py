"""What is measured of one running router, one function per question. compare.py says which, in what order, how often.

Every function gives plain figures by name and leaves the router idle. CPU is that of the router's whole process tree;
delays are read from the stamps that the engine writes into its events. An answer that fails is counted, never hidden:
`errors` is part of each result.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import msgspec

from loadtest.client import Client, Exchange, Recorder
from loadtest.plain import plain_load
from loadtest.processes import Process, core_busy_s

Figures = dict[str, float]

INTERVAL_S = 0.02
"""50 events a second, what a fast engine gives one stream."""
SETTLE_S = 0.5


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """One router under load."""

    client: Client
    engines: tuple[Client, ...]
    router: Process | None
    body: dict[str, object]
    """A chat request without `stream` and `max_tokens`."""
    directory: Path
    core: int
    """Where the router runs, alone if nobody else uses the machine."""
    api_key: str = ""

    def request(self, events: int, *, stream: bool = True) -> bytes:
        body = {**self.body, "max_tokens": events}
        return self.client.encode("/v1/chat/completions", {**body, "stream": True} if stream else body)

    async def pace(self, interval_s: float) -> None:
        for engine in self.engines:
            await engine.post("/pace", {"interval_s": interval_s})

    async def running(self) -> int:
        """Streams that the engines believe somebody reads."""
        pages = [(await engine.get("/metrics")).text() for engine in self.engines]
        return sum(int(page.split()[-1]) for page in pages)

    def cpu_s(self) -> float:
        return self.router.cpu_s() if self.router is not None else 0.0

    def memory_bytes(self) -> int:
        return self.router.usage().memory_bytes if self.router is not None else 0


async def paced(bench: Bench, *, streams: int, seconds: float) -> Figures:
    """CPU per event and the delay of each event, while `streams` streams run at 50 events a second."""
    await bench.pace(INTERVAL_S)
    events = round((1.0 + SETTLE_S + seconds + 1.0) / INTERVAL_S)
    recorder = Recorder()
    async with _open(bench, streams, bench.request(events), recorder, over_s=1.0) as exchanges:
        await asyncio.sleep(SETTLE_S)
        cpu, at, first, count = bench.cpu_s(), perf_counter(), len(recorder.delay_s), recorder.events
        busy = core_busy_s(bench.core)
        await asyncio.sleep(seconds)
        cpu, at, count = bench.cpu_s() - cpu, perf_counter() - at, recorder.events - count
        busy = core_busy_s(bench.core) - busy
        delays = recorder.delay_s[first:]
        errors = _errors(exchanges)
    return {
        "cpu_us_per_event": _us_each(cpu, count),
        "cpu_share": cpu / at,
        "others_share": max(0.0, busy - cpu) / at,
        "events_share": count * INTERVAL_S / (streams * at),
        "relay_ms_p50": 1e3 * quantile(delays, 0.5),
        "relay_ms_p99": 1e3 * quantile(delays, 0.99),
        "relay_ms_p999": 1e3 * quantile(delays, 0.999),
        "errors": errors,
    }


async def first_events(bench: Bench, *, seconds: float, rate: float = 100.0, background: int = 32) -> Figures:
    """Time from sending a request to its first event: short streams at a steady rate beside paced ones."""
    await bench.pace(INTERVAL_S)
    events = round((1.0 + SETTLE_S + seconds + 1.0) / INTERVAL_S)
    recorder = Recorder(stamps=False)
    short = bench.request(2)
    shorts: list[Exchange] = []
    async with _open(bench, background, bench.request(events), Recorder(stamps=False), over_s=1.0) as exchanges:
        started = perf_counter()
        while (since := perf_counter() - started) < seconds:
            while len(shorts) < since * rate:
                shorts.append(await bench.client.open(short, recorder=recorder))
            await asyncio.sleep(0.5 / rate)
        async with asyncio.timeout(30):
            for exchange in shorts:
                await exchange.ended()
        errors = _errors(exchanges) + sum(not exchange.complete for exchange in shorts)
    return {
        "first_event_ms_p50": 1e3 * quantile(recorder.first_event_s, 0.5),
        "first_event_ms_p99": 1e3 * quantile(recorder.first_event_s, 0.99),
        "errors": errors,
    }


async def ceiling(bench: Bench, *, seconds: float, streams: int = 64) -> Figures:
    """Events a second when the engines write as fast as they are read; `ceiling_cpu_share` says who was the limit."""
    await bench.pace(0.0)
    recorder = Recorder(stamps=False)
    async with _open(bench, streams, bench.request(100_000_000), recorder, over_s=0.2) as exchanges:
        await asyncio.sleep(SETTLE_S)
        cpu, at, count = bench.cpu_s(), perf_counter(), recorder.events
        await asyncio.sleep(seconds)
        cpu, at, count = bench.cpu_s() - cpu, perf_counter() - at, recorder.events - count
        errors = _errors(exchanges)
    await bench.pace(INTERVAL_S)
    return {
        "ceiling_events_per_s": count / at,
        "ceiling_cpu_share": cpu / at,
        "ceiling_cpu_us_per_event": _us_each(cpu, count),
        "errors": errors,
    }


async def plain(bench: Bench, *, seconds: float, connections: int = 32) -> Figures:
    """Non-streaming requests as fast as they are answered."""
    body = msgspec.json.encode({**bench.body, "max_tokens": 16})
    cpu = bench.cpu_s()
    done = await plain_load(
        bench.client,
        body,
        path="/v1/chat/completions",
        connections=connections,
        seconds=seconds,
        directory=bench.directory,
        api_key=bench.api_key,
    )
    cpu = bench.cpu_s() - cpu
    return {
        "cpu_us_per_plain": _us_each(cpu, done.requests - done.failures),
        "plain_per_s": (done.requests - done.failures) / done.seconds,
        "plain_cpu_share": cpu / done.seconds,
        "errors": done.failures,
    }


async def memory(bench: Bench, *, levels: Sequence[int], limit_s: float = 30.0) -> Figures:
    """Memory of the tree with nobody there, and what each open stream adds at each level (one event a second each)."""
    await _used(bench)
    await bench.pace(1.0)
    idle = bench.memory_bytes()
    figures: Figures = {"idle_mib": idle / 2**20, "errors": 0}
    request = bench.request(100_000)
    exchanges: list[Exchange] = []
    deadline = perf_counter() + limit_s
    for level in levels:
        while len(exchanges) < level and perf_counter() < deadline:
            exchanges += [await bench.client.open(request) for _ in range(min(20, level - len(exchanges)))]
            await asyncio.sleep(0.02)
        while perf_counter() < deadline and _silent(exchanges):
            await asyncio.sleep(0.1)
        speaking = len(exchanges) - _silent(exchanges)
        if speaking == level:
            figures[f"kib_per_stream_{level}"] = (bench.memory_bytes() - idle) / 1024 / speaking
        figures["errors"] = _errors(exchanges)
    for exchange in exchanges:
        exchange.abort()
    await _quiet(bench)
    return figures


async def crowd(bench: Bench, *, streams: int, interval_s: float, seconds: float) -> Figures:
    """Very many slow streams: is every event in time, and what does a stream hold at first and per delivered token?"""
    await _used(bench, requests=5000, limit_s=10.0)
    await bench.pace(interval_s)
    idle = bench.memory_bytes()
    opening_s = streams / 500
    recorder = Recorder()
    request = bench.request(round((opening_s + 2 * seconds + 10) / interval_s))
    async with _open(bench, streams, request, recorder, over_s=opening_s) as exchanges:
        await asyncio.sleep(2 * interval_s)
        first, before, at = bench.memory_bytes(), recorder.events, perf_counter()
        mark, cpu = len(recorder.delay_s), bench.cpu_s()
        await asyncio.sleep(seconds)
        cpu, at, count = bench.cpu_s() - cpu, perf_counter() - at, recorder.events - before
        last, delays = bench.memory_bytes(), recorder.delay_s[mark:]
        errors, silent = _errors(exchanges), _silent(exchanges)
    return {
        "streams": streams,
        "silent": silent,
        "events_share": count * interval_s / (streams * at),
        "cpu_share": cpu / at,
        "cpu_us_per_event": _us_each(cpu, count),
        "relay_ms_p50": 1e3 * quantile(delays, 0.5),
        "relay_ms_p99": 1e3 * quantile(delays, 0.99),
        "relay_ms_max": 1e3 * max(delays, default=float("nan")),
        "kib_per_stream": (first - idle) / 1024 / streams,
        "bytes_per_token": (last - first) / max(1, count),
        "errors": errors,
    }


async def delays_of_nagle(bench: Bench) -> Figures:
    """Medians that jump to tens of ms if either side of the router waits for acknowledgements before it writes."""
    await bench.pace(0.003)
    recorder, alone = Recorder(), Recorder(stamps=False)
    exchange = await bench.client.fetch(bench.request(200), recorder=recorder)
    for _ in range(20):
        await bench.client.fetch(bench.request(1), recorder=alone)
    return {
        "dense_relay_ms_p50": 1e3 * quantile(recorder.delay_s, 0.5),
        "lone_first_event_ms_p50": 1e3 * quantile(alone.first_event_s, 0.5),
        "errors": int(not exchange.complete),
    }


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a share q of the values does not exceed; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-q * len(ordered) // 1) - 1))]


@asynccontextmanager
async def _open(
    bench: Bench, streams: int, request: bytes, recorder: Recorder, *, over_s: float
) -> AsyncIterator[list[Exchange]]:
    """`streams` streams, begun evenly over a time so that their phases differ; aborted at the end."""
    gc.collect()
    gc.disable()
    started = perf_counter()
    exchanges: list[Exchange] = []
    try:
        for n in range(streams):
            await asyncio.sleep(max(0.0, started + n * over_s / streams - perf_counter()))
            exchanges.append(await bench.client.open(request, recorder=recorder))
        yield exchanges
    finally:
        for exchange in exchanges:
            exchange.abort()
        gc.enable()
        await _quiet(bench)


async def _used(bench: Bench, requests: int = 1000, limit_s: float = 5.0) -> None:
    """Fill what a router remembers of its last requests, within bounds: that is no memory of an open stream."""
    short = bench.request(1)
    deadline = perf_counter() + limit_s
    while requests and perf_counter() < deadline:
        await bench.client.fetch(short)
        requests -= 1


async def _quiet(bench: Bench, limit_s: float = 10.0) -> None:
    """Wait until the engines have seen that nobody listens any more, which is the router's duty to tell them."""
    deadline = perf_counter() + limit_s
    while perf_counter() < deadline:
        if not await bench.running():
            return
        await asyncio.sleep(0.05)


def _us_each(cpu_s: float, count: int) -> float:
    return 1e6 * cpu_s / count if count else float("nan")


def _errors(exchanges: Sequence[Exchange]) -> int:
    """Streams that ended although they should still run, or were refused."""
    return sum(bool(exchange.error) or exchange.status not in (0, 200) for exchange in exchanges)


def _silent(exchanges: Sequence[Exchange]) -> int:
    return sum(not exchange.events for exchange in exchanges)

"""How cheap the simulated engine is. Not a test: figures depend on the machine.

`python -m node_agent.engines.simulated.bench --streams 64 --profile instant` starts an engine in a process of its own,
opens streams that read as fast as they can, and prints events per second and the engine's CPU time per event (user +
system, from /proc: Linux only). `--replicas 16 --requests 12000` instead drives that many batching models in virtual
time, requests dealt out in turn, and prints how long that took.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import uvloop

from node_agent.engines.simulated.batching import Batch, Sequence, Step
from node_agent.engines.simulated.profiles import PROFILES, resized

_BODY = (
    b'{"model":"sim-8b","messages":[{"role":"user","content":"Hello %d"}],"stream":true,"temperature":0,'
    b'"max_tokens":%d,"ignore_eos":true}'
)
_EVENT = b"data: "


class _Reader(asyncio.Protocol):
    """Counts events; the last byte of the answer ends it."""

    def __init__(self, request: bytes, done: asyncio.Future[int]) -> None:
        self.request = request
        self.done = done
        self.events = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.events += data.count(_EVENT)
        if data.endswith(b"0\r\n\r\n"):
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(self.events)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _run(port: int, streams: int, tokens: int) -> int:
    loop = asyncio.get_running_loop()
    endings = []
    for i in range(streams):
        body = _BODY % (i, tokens)
        request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        done: asyncio.Future[int] = loop.create_future()
        endings.append(done)
        await loop.create_connection(lambda r=request, d=done: _Reader(r, d), "127.0.0.1", port)  # type: ignore[misc]
    return sum(await asyncio.gather(*endings))


class _Fleet:
    """Batching models in one queue of events: a step lies in it with the end it had when it was put there."""

    def __init__(self, replicas: int) -> None:
        profile = resized(PROFILES["llama-3.1-8b-h100"], block_tokens=512)
        self.batches = [Batch(profile) for _ in range(replicas)]
        self.current: list[Step | None] = [None] * replicas
        self.queue: list[tuple[float, int]] = []
        self.steps = self.calls = self.finished = 0

    def add(self, i: int, sequence: Sequence, now: float) -> None:
        self.batches[i].add(sequence, now)
        if (step := self.current[i]) is None:
            self._next(i, now)
        else:
            # The arrival may have cut a stretch short; the later entry is stale then.
            heapq.heappush(self.queue, (step.ends_at, i))

    def run_to(self, now: float) -> None:
        while self.queue and self.queue[0][0] <= now:
            at, i = heapq.heappop(self.queue)
            step = self.current[i]
            if step is not None and step.ends_at == at:
                self.steps += step.steps
                self.finished += len(step.finished)
                self._next(i, at)

    def _next(self, i: int, now: float) -> None:
        self.current[i] = step = self.batches[i].step(now, limit=10_000)
        self.calls += 1
        if step is not None:
            heapq.heappush(self.queue, (step.ends_at, i))


def _simulate(replicas: int, requests: int) -> str:
    """Prompts of some 4,000 tokens, half of each shared with a session; answers of some 200; two a second a replica."""
    rng, fleet, now = random.Random(1), _Fleet(replicas), 0.0
    began = time.monotonic()
    for n in range(requests):
        now += rng.expovariate(2.0 * replicas)
        fleet.run_to(now)
        prompt, session = int(rng.expovariate(1 / 4000)) + 1, rng.randrange(200)
        blocks = [(session if at < prompt / 1024 else requests + n) * 1_000_000 + at for at in range(prompt // 512)]
        answer = int(rng.expovariate(1 / 200)) + 1
        fleet.add(n % replicas, Sequence(id=str(n), prompt_tokens=prompt, max_tokens=answer, blocks=blocks), now)
    fleet.run_to(float("inf"))
    wall = time.monotonic() - began
    return (
        f"{replicas} replicas, {fleet.finished} requests, {fleet.steps} engine steps in {fleet.calls} calls: "
        f"{wall:.1f} s for {now:.0f} s of virtual time\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2000, help="per stream")
    parser.add_argument("--profile", default="instant")
    parser.add_argument("--replicas", type=int, default=0, help="in virtual time, without a server")
    parser.add_argument("--requests", type=int, default=12_000)
    args = parser.parse_args()
    if args.replicas:
        sys.stdout.write(_simulate(args.replicas, args.requests))
        return 0
    command = [sys.executable, "-m", "node_agent.engines.simulated", "--port", "0", "--profile", args.profile]
    engine = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert engine.stdout is not None
        port = int(engine.stdout.readline().rsplit(":", 1)[1])
        cpu, began = _cpu_s(engine.pid), time.monotonic()
        events = uvloop.run(_run(port, args.streams, args.tokens))
        wall = time.monotonic() - began
        cpu = _cpu_s(engine.pid) - cpu
        sys.stdout.write(
            f"{args.profile}: {args.streams} streams, {events} events in {wall:.1f} s: {events / wall:,.0f} events/s; "
            f"engine CPU {cpu:.1f} s, {cpu / events * 1e6:.1f} us per event\n"
        )
    finally:
        engine.terminate()
        engine.wait(10)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

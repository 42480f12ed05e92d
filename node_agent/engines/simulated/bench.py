"""How cheap the simulated engine is: `python -m node_agent.engines.simulated.bench --streams 64 --profile instant`.

Starts an engine in a process of its own, opens streams that read as fast as they can, and prints events per second
and the engine's CPU time per event (user + system, from /proc). Linux only. Not a test: figures depend on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import uvloop

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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2000, help="per stream")
    parser.add_argument("--profile", default="instant")
    args = parser.parse_args()
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

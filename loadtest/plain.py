"""Plain load: keep-alive requests without streaming, as many as the other side answers.

`wrk` does it where it is installed, because it costs a tenth of what we cost; else our own client. Either way the
figures are requests, failures and time; who was the bottleneck is for the caller to see from the CPU clocks.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from pathlib import Path

import msgspec

from loadtest.client import Client

_SCRIPT = """wrk.method = "POST"
wrk.body = [==[%s]==]
wrk.headers["content-type"] = "application/json"
%s
"""


class NoFigures(RuntimeError):  # noqa: N818 - reads as what it is where it is caught
    """A measurement gave nothing to read; the message says why."""


class Plain(msgspec.Struct, frozen=True):
    requests: int
    failures: int
    seconds: float
    tool: str


async def plain_load(
    client: Client, body: bytes, *, path: str, connections: int, seconds: float, directory: Path, api_key: str = ""
) -> Plain:
    if shutil.which("wrk"):
        return await _wrk(client, body, path=path, connections=connections, seconds=seconds, at=directory, key=api_key)
    return await _own(client, body, path=path, connections=connections, seconds=seconds)


async def _wrk(
    client: Client, body: bytes, *, path: str, connections: int, seconds: float, at: Path, key: str
) -> Plain:
    script = at / "wrk.lua"
    header = f'wrk.headers["authorization"] = "Bearer {key}"' if key else ""
    script.write_text(_SCRIPT % (body.decode(), header))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(script)]
    started = await asyncio.create_subprocess_exec(
        *command,
        f"http://{client.host}:{client.port}{path}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await started.communicate()
    return parse_wrk(out.decode())


def parse_wrk(text: str) -> Plain:
    """`N requests in 3.00s, ...`, and what went wrong: socket errors and answers that are no 2xx or 3xx."""
    done = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", text)
    if done is None:
        raise NoFigures(f"wrk said something else: {text[:300]!r}")
    unit = {"ms": 1e-3, "s": 1.0, "m": 60.0}[done[3]]
    errors = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", text))
    errors += sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    return Plain(requests=int(done[1]), failures=errors, seconds=float(done[2]) * unit, tool="wrk")


async def _own(client: Client, body: bytes, *, path: str, connections: int, seconds: float) -> Plain:
    request = client.encode(path, body)
    started = time.perf_counter()
    counts = [0, 0]

    async def caller() -> None:
        while time.perf_counter() - started < seconds:
            exchange = await client.fetch(request, keep=False)
            counts[not (exchange.finished and exchange.status == 200)] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(caller())
    return Plain(
        requests=sum(counts), failures=counts[1], seconds=time.perf_counter() - started, tool="loadtest.client"
    )

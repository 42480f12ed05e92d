"""One router over engines without agents, on this machine: what soaks and tests of this room stand on.

A registry of its own, simulated engines in one process, their records kept by register.py, one router. Everything is a
real process started by its public command and ends with the context. Pins nothing; compare.py does that.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import msgspec

from loadtest.client import Client
from loadtest.peers import switchyard
from loadtest.peers.contestant import Command, Site
from loadtest.processes import CannotStart, Process, Processes, free_port

START_LIMIT_S = 60.0


class Rig(msgspec.Struct, frozen=True, kw_only=True):
    client: Client
    """Speaks with the router, with a key."""
    engines: tuple[Client, ...]
    model: str
    router: Process
    journal: Path
    """Directory of the router's usage journal."""


@asynccontextmanager
async def rig(
    directory: Path,
    *,
    replicas: int = 4,
    model: str = "sim-chat",
    engine_options: Sequence[str] = (),
    router_options: Sequence[str] = (),
) -> AsyncIterator[Rig]:
    """Ready to answer; raises CannotStart with the end of a log when it does not become so."""
    with Processes() as processes:
        argv = (sys.executable, "-m", "node_agent.engines.simulated", "--ports", f"0x{replicas}", "--model", model)
        engine = processes.start([*argv, *engine_options], name="engines", directory=directory)
        addresses = tuple(await_ready_lines(engine, replicas))
        site = Site(port=free_port(), engines=addresses, model=model, directory=directory)
        server, endpoint = switchyard.registry(directory)
        start(processes, server, directory)
        start(processes, switchyard.enrolment(site, endpoint), directory)
        router = start(processes, switchyard.router(site, endpoint, *router_options), directory)
        made = Rig(
            client=Client("127.0.0.1", site.port, api_key=switchyard.KEY),
            engines=tuple(Client(*_host_port(address)) for address in addresses),
            model=model,
            router=router,
            journal=directory / "router",
        )
        try:
            await _answers(made)
            yield made
        finally:
            for client in (made.client, *made.engines):
                client.close()


def start(processes: Processes, command: Command, directory: Path) -> Process:
    process = processes.start(command.argv, name=command.name, directory=directory, env=command.env)
    if command.ready:
        process.await_line(command.ready)
    return process


def await_ready_lines(process: Process, count: int, limit_s: float = 30.0) -> list[str]:
    """Addresses of simulated replicas, in the order they began to listen."""
    deadline = monotonic() + limit_s
    while monotonic() < deadline:
        lines = process.log.read_text(errors="replace").splitlines()
        found = [line.removeprefix("ready on ") for line in lines if line.startswith("ready on ")]
        if len(found) >= count:
            return found[:count]
        process.await_line("ready on ", limit_s=limit_s)
    raise CannotStart(f"only some of {count} replicas are ready: {process.last_words()}")


async def _answers(made: Rig) -> None:
    """Until one request has been answered."""
    body = {"model": made.model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    request = made.client.encode("/v1/chat/completions", body)
    deadline = monotonic() + START_LIMIT_S
    last = "nothing"
    while monotonic() < deadline and made.router.running:
        exchange = await made.client.fetch(request)
        if exchange.status == 200:
            return
        last = f"{exchange.status} {exchange.error} {exchange.text()[:300]!r}"
        await asyncio.sleep(0.1)
    raise CannotStart(f"the router answered {last}; its log ends: {made.router.last_words()}")


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)

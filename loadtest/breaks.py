"""What can be broken in a house, how it comes back, and what that needs of this machine.

Each is done to a house under load by faults.py: break it, leave it so for `away_s`, bring it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from loadtest.house import House, eventually
from wire.registry import RegistryError

Breaks = Callable[[House, float], Awaitable[None]]

CLOCK_ERROR_S = 60.0
SPARE = 2
"""Descriptors that a part may still open when it runs out."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    breaks: Breaks
    network: bool = False
    """Only where each part has a host of its own (network.py)."""
    clocks: bool = False
    """Only where the parts' wall clocks can be set (libfaketime)."""


async def kill_engine(at: House, away_s: float) -> None:
    """Its agent starts another one."""
    replica = await at.busiest()
    generation = (await at.replicas())[replica].generation

    async def replaced() -> bool:
        found = (await at.replicas()).get(replica)
        return found is not None and found.generation > generation

    await at.kill(replica)
    await eventually(replaced, why="a new engine is started")


async def stop_engine(at: House, away_s: float) -> None:
    replica = await at.busiest()
    at.signal(replica, signal.SIGSTOP)
    await asyncio.sleep(max(6.0, away_s))
    at.signal(replica, signal.SIGCONT)


async def stop(part: str, at: House, away_s: float) -> None:
    """SIGSTOP, and go on after the time away."""
    name = await _named(part, at)
    at.signal(name, signal.SIGSTOP)
    await asyncio.sleep(away_s)
    at.signal(name, signal.SIGCONT)


async def kill_agent(at: House, away_s: float) -> None:
    await at.kill(at.nodes[0])
    await asyncio.sleep(away_s)
    at.start_agent(at.nodes[0])


async def kill_registry(at: House, away_s: float) -> None:
    await at.kill("registry")
    await asyncio.sleep(away_s)
    at.start_registry()


async def kill_router(at: House, away_s: float) -> None:
    """Whoever supervises it starts it again soon."""
    await at.kill("router")
    await asyncio.sleep(min(1.0, away_s))
    at.start_router()


async def fill_disk(part: str, at: House, away_s: float) -> None:
    """Whatever the part, its engines and their keepers write to a file fails, as on a full disk."""
    pids = at.pids(await _named(part, at))
    before = [resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids]
    for pid, (_, hard) in zip(pids, before, strict=True):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    await asyncio.sleep(away_s)
    for pid, limits in zip(pids, before, strict=True):
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


async def fill_registrys_disk(at: House, away_s: float) -> None:
    """etcd ends itself at the first record that it cannot log; whoever supervises it starts it when there is room."""

    async def write() -> None:
        await asyncio.sleep(0.2)
        with contextlib.suppress(RegistryError):
            await at.store.put("disk", b"is it full?")

    await asyncio.gather(fill_disk("registry", at, away_s), write())
    if not at.processes["registry"].running:
        at.start_registry()


async def take_descriptors(part: str, at: House, away_s: float) -> None:
    """The part can open next to nothing, while twenty new clients come to the router."""
    pid = at.processes[await _named(part, at)].pid
    used = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + SPARE, limits[1]))
    try:
        await asyncio.gather(asyncio.sleep(away_s), *(_knock(at) for _ in range(20)))
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


async def _knock(at: House) -> None:
    """Answered, refused or closed: all the same here, but it must not be left to wait."""
    try:
        async with asyncio.timeout(10.0):
            reader, writer = await asyncio.open_connection(at.host("router"), at.router_port)
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            await reader.read()
            writer.close()
    except ConnectionError:
        pass


async def step_clock(part: str, by_s: int, at: House, away_s: float) -> None:
    """And back, after the time away."""
    name = await _named(part, at)

    async def stepped() -> bool:
        return abs(await at.clock_s(name) - 1e-9 * time.time_ns() - by_s) < CLOCK_ERROR_S

    at.set_clock(name, by_s)
    await eventually(stepped, limit_s=10.0, why=f"the clock of {name} is {by_s} s off")
    await asyncio.sleep(away_s)
    at.set_clock(name, 0)


async def cut(part: str, others: tuple[str, ...], at: House, away_s: float) -> None:
    """No packet passes between them, and neither is told."""
    assert at.network is not None
    name = await _named(part, at)
    at.network.cut(name, *others)
    await asyncio.sleep(away_s)
    at.network.heal(name, *others)


async def _named(part: str, at: House) -> str:
    """The node is the one that has most to do."""
    return (await at.busiest()).partition(".")[0] if part == NODE else part


NODE = "node"
FAULTS: dict[str, Fault] = {
    "engine, kill -9": Fault(breaks=kill_engine),
    "engine, SIGSTOP": Fault(breaks=stop_engine),
    "agent, kill -9": Fault(breaks=kill_agent),
    "agent, SIGSTOP": Fault(breaks=partial(stop, NODE)),
    "registry, kill -9": Fault(breaks=kill_registry),
    "registry, SIGSTOP": Fault(breaks=partial(stop, "registry")),
    "router, kill -9": Fault(breaks=kill_router),
    "router, SIGSTOP": Fault(breaks=partial(stop, "router")),
    "router, disk full": Fault(breaks=partial(fill_disk, "router")),
    "node, disk full": Fault(breaks=partial(fill_disk, NODE)),
    "registry, disk full": Fault(breaks=fill_registrys_disk),
    "router, no descriptors": Fault(breaks=partial(take_descriptors, "router")),
    "agent, no descriptors": Fault(breaks=partial(take_descriptors, NODE)),
    "registry, no descriptors": Fault(breaks=partial(take_descriptors, "registry")),
    "router, clock an hour ahead": Fault(breaks=partial(step_clock, "router", 3600), clocks=True),
    "router, clock an hour back": Fault(breaks=partial(step_clock, "router", -3600), clocks=True),
    "node, clock an hour ahead": Fault(breaks=partial(step_clock, NODE, 3600), clocks=True),
    "node, clock an hour back": Fault(breaks=partial(step_clock, NODE, -3600), clocks=True),
    "node cut off from router": Fault(breaks=partial(cut, NODE, ("router",)), network=True),
    "node cut off from registry": Fault(breaks=partial(cut, NODE, ("registry",)), network=True),
    "router cut off from registry": Fault(breaks=partial(cut, "router", ("registry",)), network=True),
    "node unplugged": Fault(breaks=partial(cut, NODE, ("router", "registry")), network=True),
    "registry unplugged": Fault(breaks=partial(cut, "registry", ("router", "node-1", "node-2")), network=True),
}

"""A node agent as a real process with simulated engines, and a registry beside it, all on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec

from wire import embedded
from wire.connect import RegistrySettings, connect
from wire.records import Node, Replica, decode, prefix
from wire.registry import RegistryError
from wire.store import Store
from wire.v1 import node_pb2 as pb
from wire.v1 import node_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
SAFETY_S = 30.0


async def eventually(
    what: Callable[[], Any | Awaitable[Any]], *, but: Callable[[], str] = lambda: "", limit_s: float = SAFETY_S
) -> Any:
    """The first true value; fails after a time that only something broken needs."""
    give_up_at = time.monotonic() + limit_s
    while True:
        value = what()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < give_up_at, f"waited too long: {but()}"
        await asyncio.sleep(0.03)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class RegistryHouse:
    """The embedded server on a port that stays, with a store that may be lost."""

    def __init__(self) -> None:
        self.port = 0
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Without any data."""
        self.port = await self._stack.enter_async_context(embedded.serve("127.0.0.1", self.port, Store()))

    async def stop(self) -> None:
        await self._stack.aclose()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"


class AgentHouse:
    """One host: its settings, the agent's process, and what the registry says of it."""

    def __init__(self, path: Path, registry: RegistryHouse, **settings: Any) -> None:
        self.path, self.registry = path, registry
        self.settings: dict[str, Any] = {
            "node": "n1",
            "state_dir": str(path / "state"),
            "registry": {"endpoints": [registry.endpoint], "timeout_s": 2.0},
            "lease_ttl_s": 2,
            "orphan_grace_s": 30.0,
            "drain_news_s": 0.2,
            "drain_limit_s": 10.0,
            "backoff_base_s": 0.1,
            "scrape_idle_s": 0.25,
            "models": [{"name": "sim", "engine": "simulated", "profile": "paced", "sleep": True, "drain_s": 5.0}],
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.pids: set[int] = set()
        self.client = connect(RegistrySettings(endpoints=(registry.endpoint,), timeout_s=2.0))

    def start(self) -> subprocess.Popen[bytes]:
        config = self.path / "agent.toml"
        config.write_bytes(b"[node_agent]\n" + _toml(self.settings))
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
        with (self.path / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "node_agent", "--config", str(config)], env=env, stderr=log, stdout=log
            )
        return self.process

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        if number is signal.SIGKILL:
            self.process.wait(SAFETY_S)

    async def exited(self, *, limit_s: float = SAFETY_S) -> int:
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, limit_s)

    def log(self) -> str:
        return (self.path / "agent.log").read_text()

    def engine(self, replica: str = "n1.sim.0") -> dict[str, Any]:
        """What the keeper's state file says, {} without one."""
        try:
            state = msgspec.json.decode((self.path / "state" / "engines" / replica / "state.json").read_bytes())
        except OSError:
            return {}
        self.pids |= {state.get("pid", 0), state.get("keeper_pid", 0), state.get("warden_pid", 0)} - {0}
        return dict(state)

    async def replica(self, name: str = "n1.sim.0") -> Replica | None:
        return {replica.replica: replica for replica in await self._records(Replica)}.get(name)

    async def node(self) -> Node | None:
        return next(iter(await self._records(Node)), None)

    async def left_the_registry(self) -> bool:
        return not await self._records(Replica) and not await self._records(Node)

    async def _records(self, kind: Any) -> list[Any]:
        try:
            entries = (await self.client.list(prefix(kind))).entries
        except RegistryError:
            return []
        return [decode(kind, entry.value) for entry in entries]

    async def ready(
        self, *, generation: int = 0, state: str = "ready", name: str = "n1.sim.0", limit_s: float = SAFETY_S
    ) -> Replica:
        """The record of the replica, once it is so (and of that generation, if any)."""

        async def look() -> Replica | None:
            found = await self.replica(name)
            well = found is not None and found.state == state and generation in (0, found.generation)
            return found if well else None

        found: Replica = await eventually(look, but=self.log, limit_s=limit_s)
        self.engine(name)
        return found

    @contextlib.asynccontextmanager
    async def stub(self) -> AsyncIterator[node_pb2_grpc.NodeAgentStub]:
        node = await eventually(self.node, but=self.log)
        async with grpc.aio.insecure_channel(node.address) as channel:
            yield node_pb2_grpc.NodeAgentStub(channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        self.engine()
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for pid in self.pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        for path in self.path.glob("state/engines/*/state.json"):
            # Agent, keeper and warden all died above: what they watched over (an engine core too) is ours to end.
            state = msgspec.json.decode(path.read_bytes())
            with contextlib.suppress(ProcessLookupError):
                if state["phase"] == "running":
                    os.killpg(state["pgid"], signal.SIGKILL)
        await self.client.close()
        assert "Traceback" not in self.log(), self.log()


@contextlib.asynccontextmanager
async def agent_house(path: Path, **settings: Any) -> AsyncIterator[AgentHouse]:
    registry = RegistryHouse()
    await registry.start()
    house = AgentHouse(path, registry, **settings)
    try:
        yield house
    finally:
        await house.close()
        await registry.stop()


async def last(progress: AsyncIterator[pb.Progress]) -> pb.Progress:
    """How a command ended."""
    messages = [message async for message in progress]
    assert messages[-1].done
    return messages[-1]


def _toml(settings: dict[str, Any]) -> bytes:
    return "".join(_lines(settings)).encode()


def _lines(settings: dict[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        yield f"{name} = {_value(value)}\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{name}" = {_value(inner)}' for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return msgspec.json.encode(value).decode()

"""A whole house of real processes on this machine, made to be broken: registry, node agents, their engines, one router.

Each part can be killed, stopped, continued and started again on the address it had. It says what the registry and the
router then believe; what it means is for the caller to judge (chaos.py, tests/integration/test_house_*.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import msgspec

from control.core import toml
from control.registry_server import embedded_command, etcd_command, find_etcd, wait_ready
from loadtest import clocks
from loadtest.client import Client
from loadtest.network import Network
from loadtest.processes import CannotStart, Process, free_port, memory_bytes
from wire.connect import RegistrySettings, connect
from wire.records import ApiKey, ModelState, Node, Record, Replica, Tenant, decode, encode, key, prefix
from wire.registry import RegistryError
from wire.usage import decode_line

KEY = "sk-house"
TENANT = "house"
MODEL = "sim"
START_LIMIT_S = 60.0
POLL_S = 0.05
ROOT = Path(__file__).resolve().parents[1]
_SAMPLE = re.compile(r"^(switchyard_\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    nodes: int = 2
    replicas: int = 1
    """Of each node."""
    engine_args: tuple[str, ...] = ("--time-scale", "2.5")
    """The profile gives a token every 20 ms; this makes it 50."""
    lease_ttl_s: int = 2
    frozen_limit_s: float = 30.0
    etcd: bool = True
    """A real one, where there is one."""
    router: Mapping[str, Any] = {}
    """Settings of the router, beside those that place it here."""
    clocks: bool = False
    """Wall clocks can be set (clocks.py)."""


async def eventually(what: Callable[[], Awaitable[Any]], *, limit_s: float = START_LIMIT_S, why: str = "") -> Any:
    """The first true value. Raises CannotStart after a time that only something broken needs."""
    deadline = monotonic() + limit_s
    while not (value := await what()):
        if monotonic() > deadline:
            raise CannotStart(f"waited {limit_s:g} s in vain: {why or what}")
        await asyncio.sleep(POLL_S)
    return value


class House:
    def __init__(self, directory: Path, size: Size, network: Network | None = None) -> None:
        """In a network of `hosts(size)`, or all on loopback."""
        self.directory, self.size, self.network = directory, size, network
        self.registry_port, self.router_port = free_port(), free_port()
        self._peer_port = free_port()
        self._etcd = find_etcd() if size.etcd else None
        self.processes: dict[str, Process] = {}
        self.nodes = node_names(size)
        self.store = connect(RegistrySettings(endpoints=(self.registry,), timeout_s=2.0))
        self.client = Client(self.host("router"), self.router_port, api_key=KEY)
        self.http = httpx.AsyncClient(timeout=5.0, trust_env=False)
        self._starts = 0
        self._seen_pids: set[int] = set()

    @property
    def registry(self) -> str:
        return f"{self.host('registry')}:{self.registry_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host('router')}:{self.router_port}"

    def host(self, name: str) -> str:
        """Address of the host that a part runs on."""
        return self.network.address[name] if self.network else "127.0.0.1"

    # Starting and breaking

    async def start(self) -> None:
        """Until one request could be answered."""
        self.start_registry()
        await wait_ready(self.registry, START_LIMIT_S)
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        for record in (Tenant(tenant=TENANT), ApiKey(sha256=digest, tenant=TENANT, label="house")):
            await self.store.put(key(record), encode(record))
        for node in self.nodes:
            self.start_agent(node)
        self.start_router()
        await self.all_ready()
        await eventually(self._sees_all, why=f"the router sees every replica; its log: {self.log('router')}")

    def start_registry(self) -> None:
        data, port = self.directory / "etcd", self.registry_port
        if self._etcd is None:
            argv = embedded_command(port=port, data_file=self.directory / "registry.json")
        else:
            peer, host = self._peer_port, self.host("registry")
            argv = etcd_command(self._etcd, data_dir=data, client_port=port, peer_port=peer, host=host)
        self._start("registry", argv)

    def start_agent(self, node: str) -> None:
        model = {
            "name": MODEL,
            "engine": "simulated",
            "profile": "paced",
            "replicas": self.size.replicas,
            "drain_s": 5.0,
            "args": list(self.size.engine_args),
        }
        settings = {
            "node": node,
            "host": self.host(node),
            "advertise_host": self.host(node),
            "state_dir": str(self.directory / node),
            "lease_ttl_s": self.size.lease_ttl_s,
            "drain_limit_s": 30.0,
            "orphan_grace_s": 20.0,
            "backoff_base_s": 0.1,
            "backoff_cap_s": 1.0,
            "crash_limit": 1000,
            "frozen_limit_s": self.size.frozen_limit_s,
            "registry": {"endpoints": [self.registry]},
            "models": [model],
        }
        self._start(node, [sys.executable, "-m", "node_agent", "--config", self._config(node, "node_agent", settings)])

    def start_router(self) -> None:
        settings = {
            "host": self.host("router"),
            "port": self.router_port,
            "data_dir": str(self.directory / "router"),
            "drain_notice_s": 0.1,
            "registry": {"endpoints": [self.registry]},
            **self.size.router,
        }
        self._start("router", [sys.executable, "-m", "router", "--config", self._config("router", "router", settings)])

    def signal(self, name: str, number: signal.Signals) -> None:
        """To one process: of an engine (by its replica's name), an agent, the router, the registry."""
        pid = self.processes[name].pid if name in self.processes else int(self.engine(name)["pid"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    async def kill(self, name: str) -> None:
        """-9, and gone when this returns."""
        pid = self.processes[name].pid if name in self.processes else int(self.engine(name)["pid"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: _gone(pid), limit_s=10.0, why=f"{name} dies")

    def set_clock(self, name: str, by_s: int) -> None:
        """Of an agent, with its engines, or of the router: so far from the true time."""
        clocks.step(self.directory, name, by_s)

    async def clock_s(self, name: str) -> float:
        """What that part takes the time to be: by the router's last record, or by an answer of the node's engine."""
        if name == "router":
            record = max((path for path in (self.directory / "router").glob("usage-*.jsonl")), default=None)
            lines = record.read_bytes().splitlines() if record else []
            return decode_line(lines[-1]).arrived_unix_ns / 1e9 if lines else 0.0
        address = (await self.replicas())[f"{name}.{MODEL}.0"].address
        asked = {"model": MODEL, "prompt": "what time is it?", "max_tokens": 1}
        return float((await self.http.post(f"http://{address}/v1/completions", json=asked)).json()["created"])

    def pids(self, name: str) -> list[int]:
        """Of a part; of an agent with its engines and their keepers."""
        replicas = [replica for replica in self.replica_names() if replica.startswith(f"{name}.")]
        states = [self.engine(replica) for replica in replicas]
        own = [int(state[kind]) for state in states for kind in ("warden_pid", "keeper_pid", "pid") if state.get(kind)]
        return [self.processes[name].pid, *own]

    # What is so

    def engine(self, replica: str) -> dict[str, Any]:
        """The keeper's state file; {} without one."""
        path = self.directory / replica.split(".", 1)[0] / "engines" / replica / "state.json"
        try:
            state: dict[str, Any] = msgspec.json.decode(path.read_bytes())
        except (OSError, msgspec.DecodeError):
            return {}
        self._seen_pids |= {int(state.get(name) or 0) for name in ("warden_pid", "keeper_pid", "pid")} - {0}
        return state

    def replica_names(self) -> list[str]:
        return [f"{node}.{MODEL}.{number}" for node in self.nodes for number in range(self.size.replicas)]

    async def replicas(self) -> dict[str, Replica]:
        """By name, as the registry has them; empty while it does not answer."""
        return {record.replica: record for record in await self._records(Replica)}

    async def node_records(self) -> dict[str, Node]:
        return {record.node: record for record in await self._records(Node)}

    async def all_ready(self, *, limit_s: float = START_LIMIT_S) -> dict[str, Replica]:
        """The replicas' records once all of them are ready."""

        async def look() -> dict[str, Replica]:
            found = await self.replicas()
            well = len(found) == len(self.replica_names()) and all(
                replica.state is ModelState.READY for replica in found.values()
            )
            return found if well else {}

        found: dict[str, Replica] = await eventually(look, limit_s=limit_s, why="every replica becomes ready")
        return found

    async def metrics(self) -> dict[str, float]:
        """Of the router, summed over labels; labelled ones also as `name{labels}`; empty while it does not answer."""
        try:
            page = (await self.http.get(f"{self.url}/metrics")).text
        except httpx.HTTPError:
            return {}
        found: dict[str, float] = {}
        for name, labels, value in _SAMPLE.findall(page):
            found[name] = found.get(name, 0.0) + float(value)
            if labels:
                found[f"{name}{{{labels}}}"] = float(value)
        return found

    async def busy(self) -> dict[str, float]:
        """What is counted as running, at the router and in the engines; empty when nothing is."""
        page = await self.metrics()
        if not page:
            return {"a router that does not answer": 1.0}
        names = ("switchyard_in_flight", "switchyard_open_requests", "switchyard_held_requests")
        found = {name: page.get(name, 0.0) for name in (*names, "switchyard_engine_connections_busy")}
        for name, replica in (await self.replicas()).items():
            found[name] = float((await self.engine_stats(replica.address)).get("active", 0))
        return {name: value for name, value in found.items() if value}

    async def quiet(self, *, limit_s: float = 20.0) -> dict[str, float]:
        """What is still counted as running when it should be nothing."""
        deadline = monotonic() + limit_s
        while (left := await self.busy()) and monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        return left

    async def engine_stats(self, address: str) -> dict[str, Any]:
        try:
            answer = await self.http.get(f"http://{address}/sim/stats")
            return dict(msgspec.json.decode(answer.content))
        except (httpx.HTTPError, msgspec.DecodeError):
            return {}

    async def busiest(self) -> str:
        """The replica with most requests under way."""
        busy = {
            name: (await self.engine_stats(replica.address)).get("active", 0)
            for name, replica in (await self.replicas()).items()
        }
        return max(busy, key=lambda name: busy[name])

    async def resumed(self) -> float:
        """Streams that this router process has continued, so far."""
        page = await self.metrics()
        return sum(
            n for name, n in page.items() if name.startswith("switchyard_attempts_total{") and '"resume"' in name
        )

    async def fault(self, address: str, **fault: Any) -> bool:
        """Have the engine there misbehave as told; False when it could not be told."""
        try:
            return (await self.http.post(f"http://{address}/sim/faults", json=fault)).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def journal_lines(self) -> int:
        """Whole records in the router's usage journal."""
        return sum(path.read_bytes().count(b"\n") for path in (self.directory / "router").glob("usage-*.jsonl"))

    def log(self, name: str) -> str:
        return self.processes[name].last_words(3000)

    # Ending

    async def close(self) -> None:
        """Everything of it ends, whatever state it is in."""
        for name in self.replica_names():
            if state := self.engine(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(state["pid"], signal.SIGCONT)
        self.client.close()
        await self.http.aclose()
        await self.store.close()
        for name, process in self.processes.items():
            if process.running:
                os.kill(process.pid, signal.SIGCONT)
                os.kill(process.pid, signal.SIGKILL if name in self.nodes else signal.SIGTERM)
        for pid in self._seen_pids:  # wardens see to the rest of an engine
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes.values():
            await asyncio.to_thread(process.stop)

    # How

    def _start(self, name: str, argv: list[str]) -> None:
        self._starts += 1
        env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "GRPC_ENABLE_FORK_SUPPORT": "0"}
        if self.size.clocks:
            env |= clocks.environment(self.directory, name)
        former = self.processes.get(name)
        if former is not None:
            former.stop(patience_s=0.0)
        argv = [*(self.network.command(name) if self.network else ()), *argv]
        self.processes[name] = Process(argv, name=f"{name}-{self._starts}", directory=self.directory, env=env)

    def _config(self, name: str, section: str, settings: dict[str, Any]) -> str:
        path = self.directory / f"{name}.toml"
        path.write_text(toml.dumps({section: settings}))
        return str(path)

    async def _records(self, kind: Any) -> list[Any]:
        try:
            return [decode(kind, entry.value) for entry in (await self.store.list(prefix(kind))).entries]
        except RegistryError:
            return []

    async def _sees_all(self) -> bool:
        return (await self.metrics()).get("switchyard_nodes_reporting", 0.0) == len(self.nodes)


async def _gone(pid: int) -> bool:
    return not memory_bytes(pid)


def node_names(size: Size) -> list[str]:
    return [f"node-{number}" for number in range(1, size.nodes + 1)]


def hosts(size: Size) -> list[str]:
    """What has a host of its own where there is a network."""
    return ["registry", "router", *node_names(size)]


@asynccontextmanager
async def house(directory: Path, size: Size | None = None, *, network: Network | None = None) -> AsyncIterator[House]:
    made = House(directory, size or Size(), network)
    try:
        await made.start()
        yield made
    finally:
        await made.close()


__all__ = ["MODEL", "House", "Record", "Size", "eventually", "house"]

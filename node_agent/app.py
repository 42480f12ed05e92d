"""The agent put together: what runs, in which order it starts and, more carefully, in which order it stops.

Start: lock of the state directory, engines of a former self, gRPC server, registry. Engines do not wait for the
registry: they start while it is away.

Stop (SIGTERM, SIGINT): every replica goes to `draining` in registry and reports, streams end, engines stop, records
leave, the gRPC server closes. A second signal skips the waiting: engines are killed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Iterable

import httpx

from node_agent import views
from node_agent.core.report import Load, SentBook
from node_agent.engines.base import Engine
from node_agent.engines.ports import Ports
from node_agent.engines.process import StateDir
from node_agent.engines.simulated_engine import SimulatedEngine
from node_agent.engines.vllm import VllmEngine
from node_agent.host import NodeHost
from node_agent.memory import Memory
from node_agent.notice import Notice
from node_agent.presence import Presence
from node_agent.reports import Reporter
from node_agent.server import Servicer, serve
from node_agent.settings import EngineKind, NodeAgentSettings
from node_agent.slot import Shared
from wire.connect import connect
from wire.records import Node, Record
from wire.registry import Registry

logger = logging.getLogger(__name__)

VERSION = "0.1.0"
ENGINE_CONNECTIONS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=4.0)
"""Below uvicorn's five seconds of keep-alive, so that no scrape meets a connection that is being closed."""


class Agent:
    """One node agent. `run` returns when it has stopped; `stop` asks for that, twice for at once."""

    def __init__(self, settings: NodeAgentSettings, registry: Registry | None = None) -> None:
        self.settings = settings
        self._registry = registry
        self._stops: list[asyncio.Event] = [asyncio.Event(), asyncio.Event()]
        self._started_unix_ns = time.time_ns()
        self.address = ""

    def stop(self) -> None:
        next((event for event in self._stops if not event.is_set()), self._stops[-1]).set()

    async def run(self) -> None:
        """Raise SettingsError when it cannot begin."""
        directory = StateDir(self.settings.state_dir)
        directory.acquire()
        try:
            async with httpx.AsyncClient(limits=ENGINE_CONNECTIONS, trust_env=False) as http:
                await self._run(directory, http)
        finally:
            directory.release()

    async def _run(self, directory: StateDir, http: httpx.AsyncClient) -> None:
        settings, changed, book = self.settings, Notice(), SentBook()
        ports = Ports(settings.bind_host, settings.engine_port_first, settings.engine_port_last)
        memory = Memory(directory.path / "memory.json")
        shared = Shared(settings, directory, memory, ports, http, changed.tell)
        host = NodeHost(shared, _engines(settings), book, changed)

        def loads(now: float) -> tuple[Load, ...]:
            return tuple(views.load(slot, now) for slot in host.slots.values())

        reporter = Reporter(loads, changed, clock=shared.clock, epoch=self._started_unix_ns, book=book)
        server, port = await serve(Servicer(host, reporter), host=settings.host, port=settings.port, tls=settings.tls)
        self.address = f"{settings.advertise_host}:{port}"
        registry = self._registry or connect(settings.registry)
        presence = Presence(registry, lambda: self._records(host), changed, ttl_s=settings.lease_ttl_s)
        logger.info(
            "node agent %s (region %s): %d replicas, gRPC %s, state in %s, registry %s",
            settings.node,
            settings.region,
            len(host.slots),
            self.address,
            directory.path,
            ",".join(settings.registry.endpoints),
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(part.run()) for part in (host, reporter, presence)]
                await self._until_stopped(host)
                for task in running:
                    task.cancel()
            await presence.leave()
        finally:
            await server.stop(grace=0.5)
            if self._registry is None:
                await registry.close()
        logger.info("node agent %s stopped", settings.node)

    async def _until_stopped(self, host: NodeHost) -> None:
        first, second = self._stops
        await first.wait()
        logger.info("draining %s; a second signal stops at once", self.settings.node)
        async with asyncio.TaskGroup() as tasks:
            drained = tasks.create_task(host.stop())
            hurried = tasks.create_task(second.wait())
            await asyncio.wait((drained, hurried), return_when=asyncio.FIRST_COMPLETED)
            if not drained.done():
                logger.warning("stopping at once: running streams are cut")
                await host.stop_at_once()
            drained.cancel()
            hurried.cancel()

    def _records(self, host: NodeHost) -> Iterable[Record]:
        """Replicas first: who sees the node sees all that it serves, also while it registers again."""
        settings = self.settings
        for slot in host.slots.values():
            yield views.record(slot, settings)
        yield Node(
            node=settings.node,
            region=settings.region,
            address=self.address,
            device_class=settings.device_class,
            draining=host.draining,
            started_unix_ns=self._started_unix_ns,
            version=VERSION,
        )


def _engines(settings: NodeAgentSettings) -> dict[EngineKind, Engine]:
    return {EngineKind.VLLM: VllmEngine(settings.vllm_python), EngineKind.SIMULATED: SimulatedEngine()}


async def run(settings: NodeAgentSettings) -> None:
    """Run until SIGTERM or SIGINT; a second one stops at once. Raise SettingsError when it cannot begin."""
    agent = Agent(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    await agent.run()

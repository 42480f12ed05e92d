"""The router process, put together: everything is made here and passed on, nothing is looked up elsewhere."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from router.attempt import Attempts
from router.core.dispatch import CoreDispatcher
from router.core.retry import RetryBudget
from router.downstream.routes import ENDPOINTS, ModelEndpoint, Pages, make_app
from router.downstream.server import RouterServer, Shutdown, listen, make_server
from router.failover import Failover
from router.fleet.news import News
from router.fleet.presence import Presence
from router.fleet.reports import AgentChannels, LoadWatch
from router.fleet.view import View, to_be_left
from router.fleet.wake import Waker
from router.fleet.watch import RegistryWatch
from router.journal import Journal
from router.meter import Meter
from router.metrics import Instruments, RouterCollector, render
from router.pipeline import Pipeline
from router.settings import RouterSettings
from router.sweep import Sweep
from router.upstream.pool import EnginePool
from router.upstream.spell import Speller
from router.why import Recent
from wire.connect import connect
from wire.records import Router
from wire.registry import Registry
from wire.settings import SettingsError

if TYPE_CHECKING:
    from router.telemetry import Tracer

log = logging.getLogger(__name__)


class RouterApp:
    """All parts of one router. Made inside the running loop."""

    def __init__(self, settings: RouterSettings, *, registry: Registry, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        self.url = settings.advertise_url or f"{'https' if settings.tls.cert else 'http'}://{host}:{port}"
        self.router_id = settings.router_id or f"{socket.gethostname()}-{port}"
        # Counts that agents echo start with the process: the name they are counted under must too.
        process_id = f"{self.router_id}/{os.getpid()}-{time.time_ns():x}"
        rng = random.Random()
        self.settings = settings
        self.registry = registry
        self.listener = listener
        self.instruments = Instruments()
        self.news = News()
        self.dispatcher = CoreDispatcher(rng=rng)
        self.pool = EnginePool(tls=settings.engine_tls.client_context(), connect_limit_s=settings.connect_limit_s)
        self.channels = AgentChannels(settings.agent_tls.channel_credentials())
        self.watch = RegistryWatch(
            registry, region=settings.region, on_view=self._on_view, answering=lambda: self.loads.connected
        )
        self.loads = LoadWatch(self.channels, self.dispatcher, router_id=process_id, on_report=self.news.tell)
        self.waker = Waker(self.channels, self._view, on_done=self.news.tell)
        self.journal = Journal(Path(settings.data_dir))
        self.meter = Meter(self.journal, region=settings.region, router=self.router_id)
        self.tracer = _tracer(settings, self.router_id)
        self.shutdown = Shutdown(notice_s=settings.drain_notice_s, limit_s=settings.drain_limit_s)
        self.attempts = Attempts(self.pool, self.dispatcher, settings, rng=rng)
        self.recent = Recent(self.dispatcher.story)
        self.speller = Speller()
        self.pipeline = Pipeline(
            view=self._view,
            failover=self._make_failover(rng),
            meter=self.meter,
            observers=[self.recent.note, *([self.tracer.finish] if self.tracer else [])],
            instruments=self.instruments,
            draining=lambda: self.shutdown.draining,
            settings=settings,
        )
        self.collector = RouterCollector(self.instruments, self._gauges, self.dispatcher.in_flight)
        self.server = self._make_server(rng)
        self.presence = self._make_presence()

    def _make_failover(self, rng: random.Random) -> Failover:
        return Failover(
            dispatcher=self.dispatcher,
            attempts=self.attempts,
            speller=self.speller,
            view=self._view,
            news=self.news,
            waker=self.waker,
            budget=RetryBudget(ratio=self.settings.retry_ratio, floor_per_s=self.settings.retry_floor_per_s),
            settings=self.settings,
            rng=rng,
        )

    def _make_server(self, rng: random.Random) -> RouterServer:
        clock = asyncio.get_running_loop().time
        ratio = self.settings.trace_ratio
        endpoints = {
            path: ModelEndpoint(path, self.pipeline.run, clock=clock, trace_ratio=ratio, rng=rng) for path in ENDPOINTS
        }
        pages = Pages(
            view=self._view,
            ready=self._not_ready,
            metrics=lambda: render(self.collector),
            why=lambda request_id, tenant: self.recent.story(request_id, tenant=tenant),
        )
        return make_server(make_app(endpoints, pages), self.settings, on_signal=self.shutdown.ask)

    def _make_presence(self) -> Presence:
        record = Router(
            router=self.router_id,
            region=self.settings.region,
            url=self.url,
            started_unix_ns=time.time_ns(),
            version=package_version(),
        )
        return Presence(self.registry, record, ttl_s=self.settings.lease_ttl_s)

    async def run(self) -> None:
        """Serve until a signal asks to leave, then leave in order. Every task lives in this group."""
        log.info("router %s serves region %s on %s", self.router_id, self.settings.region, self.url)
        sweep = Sweep(self.attempts, self.pool, lambda: self.server.protocols)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.watch.run())
                group.create_task(self.loads.run())
                group.create_task(self.waker.run())
                group.create_task(self.journal.run())
                group.create_task(sweep.run())
                presence = group.create_task(self.presence.run())

                async def leave() -> None:
                    presence.cancel()
                    await self.presence.leave()

                group.create_task(
                    self.shutdown.run(
                        self.server,
                        leave=leave,
                        open_calls=lambda: self.instruments.open_calls,
                        end_streams=self.attempts.end_all,
                    )
                )
                await self.server.serve(sockets=[self.listener])
                raise Stopped
        except* Stopped:
            pass
        finally:
            await self._close()

    async def _close(self) -> None:
        self.server.close()
        self.pool.close()
        self.journal.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)
        await self.speller.close()
        await self.channels.close()
        await self.registry.close()
        log.info("router %s has left", self.router_id)

    def _view(self) -> View:
        return self.watch.view

    def _on_view(self, view: View) -> None:
        self.dispatcher.apply(view.fleet, asyncio.get_running_loop().time())
        self.loads.follow(view.fleet.nodes)
        self.attempts.moving = to_be_left(view.fleet)
        self.attempts.move()
        self.news.tell()

    def _not_ready(self) -> str:
        if self.shutdown.draining:
            return "draining"
        return "" if self.watch.view.synced else "the registry has not been read yet"

    def _gauges(self) -> dict[str, tuple[str, float]]:
        age_s = asyncio.get_running_loop().time() - self.watch.changed_at if self.watch.changed_at else 0.0
        return {
            "switchyard_open_requests": ("Requests being served", self.instruments.open_calls),
            "switchyard_held_requests": ("Requests waiting for a replica", self.news.waiting),
            "switchyard_client_connections": ("Client connections", len(self.server.protocols)),
            "switchyard_engine_connections_busy": ("Engine connections in use", self.pool.busy_count),
            "switchyard_engine_connections_idle": ("Engine connections kept for reuse", self.pool.idle_count),
            "switchyard_registry_connected": ("1 while the registry's watch is up", float(self.watch.connected)),
            "switchyard_view_revision": ("Registry revision of the view", self.watch.view.fleet.revision),
            "switchyard_view_age_seconds": ("Since the last change of the view", age_s),
            "switchyard_nodes_reporting": ("Nodes whose load stream is up", len(self.loads.connected)),
            "switchyard_journal_records": ("Usage records written by this process", self.journal.written),
            "switchyard_journal_pending": ("Usage records waiting for the disk", self.journal.pending),
            "switchyard_journal_lost": ("Usage records dropped: the disk stayed full", self.journal.lost),
        }


class Stopped(Exception):  # noqa: N818 - ends the task group when the server is done
    """The server has ended; everything else may end too."""


def package_version() -> str:
    try:
        return version("switchyard-llm")
    except PackageNotFoundError:
        return "unknown"


def _tracer(settings: RouterSettings, router_id: str) -> Tracer | None:
    if not settings.otlp_endpoint:
        return None
    from router.telemetry import otlp_tracer  # the SDK is loaded only where spans are wanted

    resource = {
        "service.name": "switchyard-router",
        "service.instance.id": router_id,
        "service.version": package_version(),
        "cloud.region": settings.region,
    }
    return otlp_tracer(settings.otlp_endpoint, resource=resource, slow_s=settings.trace_slow_s)


async def main(settings: RouterSettings) -> None:
    """Bind first: a taken port must be said before anything is started. Raises SettingsError."""
    listener = listen(settings)
    try:
        registry = connect(settings.registry)
    except SettingsError:
        listener.close()
        raise
    await RouterApp(settings, registry=registry, listener=listener).run()

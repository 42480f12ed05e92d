"""The router process, put together: everything is made here and passed on, nothing is looked up elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from router.attempt import Attempts
from router.core import admission
from router.core.busy import Busy
from router.core.difference import Difference, Question
from router.core.dispatch import CoreDispatcher
from router.core.hedge import HedgeBudget
from router.core.retry import RetryBudget
from router.downstream.routes import ENDPOINTS, ModelEndpoint, Pages, make_app
from router.downstream.server import RouterServer, Shutdown, make_server
from router.failover import Failover
from router.fleet.news import News
from router.fleet.presence import Presence
from router.fleet.reports import AgentChannels, LoadWatch
from router.fleet.view import View, to_be_left
from router.fleet.wake import Waker
from router.fleet.watch import RegistryWatch
from router.gate import Gate
from router.gauges import gauges
from router.journal import Journal
from router.kept.returns import Returns
from router.kept.siblings import Siblings
from router.kept.table import KeptStreams
from router.listen import hands, listen
from router.meter import Meter
from router.metrics import Instruments, render
from router.pipeline import Pipeline
from router.placement import Placement
from router.race import Hedging
from router.settings import RouterSettings
from router.settling import Settling
from router.silence import notice_loss
from router.sweep import Sweep
from router.tracecontext import Sampling
from router.upstream.pool import EnginePool
from router.upstream.spell import Speller
from router.why import Recent
from router.workers.channel import How
from router.workers.member import Member
from router.workers.tally import Figures
from wire.connect import connect
from wire.records import Router
from wire.registry import Registry
from wire.settings import SettingsError

if TYPE_CHECKING:
    from router.telemetry import Tracer

log = logging.getLogger(__name__)

VIEW_LIMIT_S = 10.0
"""A worker waits this long for the registry before it takes connections with an empty view: siblings may know more,
and a probe that asked one of them would be told that the port is ready."""
POLL_S = 0.02


class RouterApp:
    """All parts of one router. Made inside the running loop."""

    def __init__(
        self, settings: RouterSettings, *, registry: Registry, listener: socket.socket, member: Member | None = None
    ) -> None:
        notice_loss(listener, settings.client_loss_limit_s)  # connections inherit it
        host, port = listener.getsockname()[:2]
        self.url = settings.advertise_url or f"{'https' if settings.tls.cert else 'http'}://{host}:{port}"
        self.router_id = settings.router_id or f"{socket.gethostname()}-{port}"
        self.member = member
        if member is not None:  # the ledger multiplies by the number of routers, and each worker is one
            self.router_id += f"/{member.post.name}"
        # Counts that agents echo start with the process: the name they are counted under must too.
        process_id = f"{self.router_id}/{os.getpid()}-{time.time_ns():x}"
        rng = random.Random()
        self.settings = settings
        self.registry = registry
        self.listener = listener
        self.instruments = Instruments()
        self.news = News()
        self.dispatcher = CoreDispatcher(rng=rng)
        engine_tls = settings.engine_tls.client_context()
        self.pool = EnginePool(tls=engine_tls, connect_limit_s=settings.connect_limit_s)
        self.channels = AgentChannels(settings.agent_tls.channel_credentials())
        self.watch = RegistryWatch(
            registry, region=settings.region, on_view=self._on_view, answering=lambda: self.loads.connected
        )
        self.loads = LoadWatch(
            self.channels,
            self.dispatcher,
            router_id=process_id,
            on_report=self._on_report,
            on_lost=self.watch.reconsider,
        )
        self.waker = Waker(self.channels, self._view, on_done=self.news.tell)
        self.journal = Journal(Path(settings.data_dir))
        self.meter = Meter(self.journal, region=settings.region, router=self.router_id)
        self.tracer = _tracer(settings, self.router_id)
        self.shutdown = Shutdown(notice_s=settings.drain_notice_s, limit_s=settings.drain_limit_s)
        self.busy = Busy()
        self.gate = self._make_gate(rng)
        self.attempts = self._make_attempts(rng)
        self.recent = Recent(self.dispatcher.chapters)
        self.kept = KeptStreams(limit_bytes=settings.kept_limit_bytes, rng=rng)
        self.siblings = Siblings(self.kept.process)
        self.speller = Speller(tls=engine_tls)
        self.pipeline = Pipeline(
            view=self._view,
            failover=self._make_failover(rng),
            meter=self.meter,
            observers=[self.recent.note, *([self.tracer.finish] if self.tracer else [])],
            instruments=self.instruments,
            settings=settings,
            kept=self.kept,
        )
        self.server = self._make_server(rng)
        self.presence = self._make_presence()

    def _make_gate(self, rng: random.Random) -> Gate:
        settings = self.settings
        limits = admission.Limits(
            begin_s=settings.admission_begin_s,
            wait_s=settings.admission_wait_s,
            queue=settings.admission_queue,
            tenant_share=settings.admission_tenant_share,
            ageing_s=settings.admission_ageing_s,
        )
        asked = admission.Admission(rng=rng, limits=limits)
        return Gate(asked, self.dispatcher, view=self._view, instruments=self.instruments)

    def _make_attempts(self, rng: random.Random) -> Attempts:
        return Attempts(
            self.pool,
            self.dispatcher,
            self.settings,
            view=self._view,
            busy=self.busy,
            rng=rng,
            on_change=self.gate.stir,
        )

    def _make_failover(self, rng: random.Random) -> Failover:
        placement = self.placement = Placement(
            self.dispatcher,
            gate=self.gate,
            busy=self.busy,
            news=self.news,
            waker=self.waker,
            hold_limit_s=self.settings.hold_limit_s,
            held_limit=self.settings.admission_queue,
        )
        return Failover(
            placement=placement,
            hedging=Hedging(
                attempts=self.attempts,
                dispatcher=self.dispatcher,
                placement=placement,
                view=self._view,
                budget=HedgeBudget(ratio=self.settings.hedge_ratio),
            ),
            attempts=self.attempts,
            settling=Settling(view=self._view, speller=self.speller),
            view=self._view,
            budget=RetryBudget(ratio=self.settings.retry_ratio, floor_per_s=self.settings.retry_floor_per_s),
            settings=self.settings,
            rng=rng,
        )

    def _make_server(self, rng: random.Random) -> RouterServer:
        clock = asyncio.get_running_loop().time
        sampling = Sampling(ratio=self.settings.trace_ratio, per_s=self.settings.trace_limit_per_s)
        returns = Returns(
            self.kept, self.siblings, view=self._view, body_limit_bytes=self.settings.body_limit_bytes
        ).run
        endpoints = {
            path: ModelEndpoint(path, self.pipeline.run, returns, clock=clock, sampling=sampling, rng=rng)
            for path in ENDPOINTS
        }
        pages = Pages(
            view=self._view,
            ready=self._not_ready,
            metrics=self._metrics,
            why=self._why,
            whatif=self._whatif,
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
        sweep = Sweep(self.attempts, self.gate, self.kept, self.pool, lambda: self.server.protocols)
        try:
            async with asyncio.TaskGroup() as group:
                if self.member is not None:
                    await self._join(self.member, group)
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
                        end_streams=self._end_all,
                    )
                )
                if self.member is not None:
                    await self._known()
                await self.server.serve(sockets=hands(self.listener))
                raise Stopped
        except* Stopped:
            pass
        finally:
            await self._close()

    async def _join(self, member: Member, group: asyncio.TaskGroup) -> None:
        await member.open()
        await self.siblings.open(self.server.protocol)
        group.create_task(member.run(leave=self._leave, figures=self._figures, story=self._story, replay=self._replay))

        async def tell() -> None:
            while not self.server.started:
                await asyncio.sleep(POLL_S)
            member.ready()

        group.create_task(tell())

    async def _known(self) -> None:
        """Return when the fleet is known, or waiting for it makes no sense any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(VIEW_LIMIT_S):
                while not self.watch.view.synced and not self.shutdown.asked.is_set():
                    await asyncio.sleep(POLL_S)

    def _leave(self, how: How) -> None:
        if how == "now":
            self.server.leave_at_once()
        if how == "retire":
            self.shutdown.retire()
        else:
            self.shutdown.ask()

    async def _close(self) -> None:
        self.server.close()
        self.siblings.close()
        self.pool.close()
        self.journal.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)
        await self.speller.close()
        await self.channels.close()
        await self.registry.close()
        log.info("router %s has left", self.router_id)

    def _end_all(self) -> None:
        self.gate.end_all()
        self.placement.end_all()
        self.kept.end_unheard()
        self.attempts.end_all()

    def _view(self) -> View:
        return self.watch.view

    def _on_view(self, view: View) -> None:
        self.dispatcher.apply(view.fleet, asyncio.get_running_loop().time())
        self.loads.follow(view.fleet.nodes)
        self.attempts.moving = to_be_left(view.fleet)
        self.attempts.move()
        self._on_report()

    def _on_report(self) -> None:
        self.news.tell()
        self.gate.stir()

    def _not_ready(self) -> str:
        if self.shutdown.draining:
            return "draining"
        return "" if self.watch.view.synced else "the registry has not been read yet"

    async def _metrics(self) -> bytes:
        told = await self.member.ask_all() if self.member is not None else None
        return render(self._figures(), told)

    async def _why(self, request_id: str, tenant: str) -> str | None:
        story = self._story(request_id, tenant)
        if story is None and self.member is not None:
            told = await self.member.ask_all(request_id=request_id, tenant=tenant)
            story = told.story if told is not None else None
        return story

    async def _whatif(self, asked: Question, tenant: str) -> Difference:
        told = await self.member.ask_all(tenant=tenant, question=asked) if self.member is not None else None
        return told.difference if told and told.difference else await self._replay(asked, tenant)

    async def _replay(self, asked: Question, tenant: str) -> Difference:
        records = self.dispatcher.remembered(lambda request_id: self.recent.belongs(request_id, tenant))
        return await asyncio.to_thread(self.dispatcher.whatif, asked, records)

    def _story(self, request_id: str, tenant: str) -> str | None:
        return self.recent.story(request_id, tenant=tenant)

    def _figures(self) -> Figures:
        return self.instruments.figures(
            gauges=gauges(
                instruments=self.instruments,
                news=self.news,
                clients=len(self.server.protocols),
                pool=self.pool,
                kept=self.kept,
                watch=self.watch,
                loads=self.loads,
                journal=self.journal,
                now=asyncio.get_running_loop().time(),
            ),
            in_flight=self.dispatcher.in_flight(),
            waiting=self.gate.lengths(),
            accuracy=self.dispatcher.accuracy(),
        )


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


async def main(settings: RouterSettings, member: Member | None = None) -> None:
    """Bind first: a taken port must be said before anything is started. Raises SettingsError."""
    if member is not None:
        listener = socket.socket(fileno=member.post.listener)
    else:
        listener = listen(settings.host, settings.port)
    try:
        registry = connect(settings.registry)
    except SettingsError:
        listener.close()
        raise
    await RouterApp(settings, registry=registry, listener=listener, member=member).run()

"""The agent's gRPC service: load reports out, commands in. Translates; decides nothing.

A command that cannot be done ends its stream with one Progress that says why and what would help. A gRPC status other
than OK means that the agent itself is in trouble.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio

from node_agent.core.commands import Command
from node_agent.core.lifecycle import Phase
from node_agent.core.report import Load
from node_agent.host import NodeHost, Refused
from node_agent.reports import Report, Reporter
from node_agent.slot import Slot
from wire.records import ModelState
from wire.settings import SettingsError
from wire.tls import TlsFiles
from wire.v1 import node_pb2 as pb
from wire.v1 import node_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
SERVER_OPTIONS = (
    # Routers ping idle streams to notice a dead host; grpc's own guard would take that for abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Two agents on one port would share its connections; the second must fail instead.
    ("grpc.so_reuseport", 0),
)


class Servicer(node_pb2_grpc.NodeAgentServicer):
    def __init__(self, host: NodeHost, reporter: Reporter) -> None:
        self._host, self._reporter = host, reporter
        self._streams: dict[str, object] = {}

    async def WatchLoad(self, requests: AsyncIterator[pb.SentCounts], context: Context) -> None:  # noqa: N802
        watcher = Watcher(self._host, self._reporter, self._streams)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(watcher.read(requests))
                report = await self._reporter.newest()
                while True:
                    await context.write(self._message(report, watcher.router))
                    report = await self._reporter.after(report.sequence)
        finally:
            watcher.close()

    def _message(self, report: Report, router: str) -> pb.LoadReport:
        book, now = self._reporter.book, self._host.clock()
        replicas = [_load(load, now, book.seen(router, load.replica)) for load in report.loads]
        return pb.LoadReport(
            node=self._host.settings.node, sequence=report.sequence, epoch=self._reporter.epoch, replicas=replicas
        )

    async def Load(self, request: pb.ReplicaCommand, context: Context) -> AsyncIterator[pb.Progress]:  # noqa: N802
        begin = partial(self._host.load, request.replica)
        async for progress in self._do(Command.LOAD, request.replica, begin):
            yield progress

    async def Wake(self, request: pb.ReplicaCommand, context: Context) -> AsyncIterator[pb.Progress]:  # noqa: N802
        begin = partial(self._host.load, request.replica)
        async for progress in self._do(Command.LOAD, request.replica, begin):
            yield progress

    async def Unload(self, request: pb.ReplicaCommand, context: Context) -> AsyncIterator[pb.Progress]:  # noqa: N802
        begin = partial(self._host.unload, request.replica)
        async for progress in self._do(Command.UNLOAD, request.replica, begin):
            yield progress

    async def Sleep(self, request: pb.SleepCommand, context: Context) -> AsyncIterator[pb.Progress]:  # noqa: N802
        begin = partial(self._host.sleep, request.replica, request.level)
        async for progress in self._do(Command.SLEEP, request.replica, begin):
            yield progress

    async def Drain(self, request: pb.DrainCommand, context: Context) -> AsyncIterator[pb.Progress]:  # noqa: N802
        begin = partial(self._host.drain, request.replica, limit_s=request.limit_s, stop=request.stop)
        async for progress in self._do(Command.DRAIN, request.replica, begin):
            yield progress

    async def Undrain(self, request: pb.UndrainCommand, context: Context) -> AsyncIterator[pb.Progress]:  # noqa: N802
        begin = partial(self._host.undrain, request.replica)
        async for progress in self._do(Command.UNDRAIN, request.replica, begin):
            yield progress

    async def _do(self, command: Command, replica: str, begin: Callable[[], list[Slot]]) -> AsyncIterator[pb.Progress]:
        try:
            slots = begin()
        except Refused as refusal:
            yield pb.Progress(replica=replica, phase="refused", fraction=-1.0, done=True, error=str(refusal))
            return
        async for slot, so_far in self._host.follow(command, slots):
            starting = slot.life.phase is Phase.STARTING
            yield pb.Progress(
                replica=slot.plan.replica,
                phase=so_far.phase,
                detail=so_far.detail or (slot.start_up.phase if starting else ""),
                fraction=1.0 if so_far.done and not so_far.error else _fraction(slot) if starting else -1.0,
                done=so_far.done,
                error=so_far.error,
            )

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:  # noqa: N802
        now = self._host.clock()
        return pb.ListResponse(
            node=self._host.settings.node,
            draining=self._host.draining,
            replicas=[self._status(slot, now) for slot in self._host.slots.values()],
        )

    def _status(self, slot: Slot, now: float) -> pb.ReplicaStatus:
        life = slot.life
        return pb.ReplicaStatus(
            replica=slot.plan.replica,
            model=slot.plan.model.name,
            state=life.state.name,
            generation=life.generation,
            address=slot.address,
            pid=slot.pid,
            since_s=now - life.since,
            restarts=life.restarts,
            detail=life.detail or (slot.start_up.phase if life.state is ModelState.LOADING else ""),
            log_path=self._host.log_path(slot.plan.replica),
        )


class Watcher:
    """One router's stream: what it has sent, as long as the stream lives."""

    def __init__(self, host: NodeHost, reporter: Reporter, streams: dict[str, object]) -> None:
        self._host, self._book, self._streams = host, reporter.book, streams
        self.router = ""

    async def read(self, requests: AsyncIterator[pb.SentCounts]) -> None:
        async for counts in requests:
            if not self.router:
                self.router = counts.router_id
                self._streams[self.router] = self
            self._host.hurry(self._book.told(self.router, counts.sent, self._host.clock()))

    def close(self) -> None:
        # A router that has come back by another stream keeps its counts.
        if self._streams.get(self.router) is self:
            del self._streams[self.router]
            self._book.forget(self.router)


def _fraction(slot: Slot) -> float:
    return slot.start_up.fraction or -1.0


def _load(load: Load, now: float, seen: int) -> pb.ReplicaLoad:
    return pb.ReplicaLoad(
        replica=load.replica,
        generation=load.generation,
        state=load.state.name,
        load_remaining_s=load.load_remaining_s,
        running=load.running,
        waiting=load.waiting,
        # vLLM counts requests that wait, not their tokens; the router adds up its own.
        waiting_uncached_tokens=-1.0,
        kv_use=load.kv_use,
        kv_capacity_tokens=load.kv_capacity_tokens,
        prefix_queries_tokens=load.prefix_queries_tokens,
        prefix_hits_tokens=load.prefix_hits_tokens,
        prompt_tokens=load.prompt_tokens,
        generation_tokens=load.generation_tokens,
        idle_s=load.idle_s,
        scraped_age_s=max(0.0, now - load.scraped_at),
        seen=seen,
        adapters=load.adapters,
    )


async def serve(servicer: Servicer, *, host: str, port: int, tls: TlsFiles) -> tuple[grpc.aio.Server, int]:
    """Start the server; return it with the port it got. Raise SettingsError when the address cannot be had."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    node_pb2_grpc.add_NodeAgentServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    credentials = tls.server_credentials()
    try:
        bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise SettingsError(f"cannot listen on {address}: is the port taken, the address this host's?") from error
    await server.start()
    return server, bound

"""Takes the load reports of every node's agent, and tells the agents how much this router has sent.

One gRPC stream per node, kept up while the node is in the view. A broken stream only lets the figures age.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from router.core.model import Dispatcher, LoadReport, ReplicaLoad
from wire.records import ModelState, Node
from wire.v1 import node_pb2 as pb
from wire.v1 import node_pb2_grpc

log = logging.getLogger(__name__)

RECONNECT_S = (0.1, 2.0)
"""First and longest pause before a broken stream is opened again."""
SILENCE_LIMIT_S = 3.0
"""Agents report every 250 ms; this long without a word and the stream is opened anew."""
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),
)
_STATES = {getattr(pb, name.name): name for name in ModelState}


class AgentChannels:
    """gRPC channels to agents, made when first needed and kept by address."""

    def __init__(self, credentials: grpc.ChannelCredentials | None) -> None:
        self._credentials = credentials
        self._channels: dict[str, grpc.aio.Channel] = {}

    def stub(self, address: str) -> Any:
        if address not in self._channels:
            self._channels[address] = (
                grpc.aio.secure_channel(address, self._credentials, options=CHANNEL_OPTIONS)
                if self._credentials
                else grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
            )
        return node_pb2_grpc.NodeAgentStub(self._channels[address])  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))
        self._channels.clear()


class LoadWatch:
    """Runs a stream per node of the view."""

    def __init__(
        self,
        channels: AgentChannels,
        dispatcher: Dispatcher,
        *,
        router_id: str,
        on_report: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._channels = channels
        self._dispatcher = dispatcher
        self._router_id = router_id
        self._on_report = on_report
        self._on_lost = on_lost
        self._wanted: dict[str, str] = {}
        self._changed = asyncio.Event()
        self.connected: set[str] = set()
        """Nodes whose stream is up."""
        self.reports = 0

    def follow(self, nodes: dict[str, Node]) -> None:
        """The nodes of the present view; streams of others end."""
        wanted = {node.node: node.address for node in nodes.values()}
        if wanted != self._wanted:
            self._wanted = wanted
            self._changed.set()

    async def run(self) -> None:
        running: dict[str, tuple[str, asyncio.Task[None]]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                for node, (address, task) in list(running.items()):
                    if self._wanted.get(node) != address:
                        task.cancel()
                        del running[node]
                for node, address in self._wanted.items():
                    if node not in running:
                        running[node] = (address, group.create_task(self._follow(node, address)))
                await self._changed.wait()
                self._changed.clear()

    async def _follow(self, node: str, address: str) -> None:
        pause_s = RECONNECT_S[0]
        while True:
            try:
                async for report in self._stream(address):
                    pause_s = RECONNECT_S[0]
                    self.connected.add(node)
                    self.reports += 1
                    self._dispatcher.report(report, asyncio.get_running_loop().time())
                    self._on_report()
            except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError) as error:
                log.info("no load reports from node %s at %s: %s", node, address, _reason(error))
            finally:
                if node in self.connected:
                    self.connected.discard(node)
                    self._dispatcher.node_lost(node, asyncio.get_running_loop().time())
                    self._on_lost()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RECONNECT_S[1])

    async def _stream(self, address: str) -> AsyncIterator[LoadReport]:
        """Reports as they come. After each, the counts of what was sent since go back on the same stream."""
        call = self._channels.stub(address).WatchLoad()
        told: dict[str, int] = {}
        try:
            await call.write(pb.SentCounts(router_id=self._router_id))
            while True:
                async with asyncio.timeout(SILENCE_LIMIT_S):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    return
                yield from_wire(message)
                sent = self._dispatcher.sent(message.node)
                if sent != told:
                    told = sent
                    await call.write(pb.SentCounts(router_id=self._router_id, sent=sent))
        finally:
            call.cancel()


def from_wire(message: pb.LoadReport) -> LoadReport:
    replicas = tuple(
        ReplicaLoad(
            replica=r.replica,
            generation=r.generation,
            state=_STATES.get(r.state, ModelState.ABSENT),
            load_remaining_s=r.load_remaining_s,
            running=r.running,
            waiting=r.waiting,
            waiting_uncached_tokens=r.waiting_uncached_tokens,
            kv_use=r.kv_use,
            kv_capacity_tokens=r.kv_capacity_tokens,
            prefix_queries_tokens=r.prefix_queries_tokens,
            prefix_hits_tokens=r.prefix_hits_tokens,
            prompt_tokens=r.prompt_tokens,
            generation_tokens=r.generation_tokens,
            idle_s=r.idle_s,
            scraped_age_s=r.scraped_age_s,
            seen=r.seen,
            adapters=tuple(r.adapters),
        )
        for r in message.replicas
    )
    return LoadReport(node=message.node, epoch=message.epoch, sequence=message.sequence, replicas=replicas)


def _reason(error: Exception) -> str:
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else repr(error)

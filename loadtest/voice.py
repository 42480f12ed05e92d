"""An agent's voice for engines that have no agent: a gRPC server whose WatchLoad says what its owner knows of them.

register.py speaks so for engines it scrapes, fleet.py for engines in its own process.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from wire.records import ApiKey, Record, Tenant
from wire.v1 import node_pb2, node_pb2_grpc

TENANT = "loadtest"
GRACE_S = 0.2

Loads = Callable[[Mapping[str, int]], Awaitable[Sequence[node_pb2.ReplicaLoad]]]
"""The load of each replica now, given how many requests the router says it has sent to each so far."""


class Voice(node_pb2_grpc.NodeAgentServicer):
    """WatchLoad only."""

    def __init__(self, node: str, loads: Loads, *, every_s: float) -> None:
        self._node, self._loads, self._every_s = node, loads, every_s
        self.epoch = time.time_ns()

    async def WatchLoad(  # noqa: N802 - gRPC's name
        self, request_iterator: AsyncIterator[node_pb2.SentCounts], context: Any
    ) -> AsyncIterator[node_pb2.LoadReport]:
        """A report now and at each interval, until the router leaves."""
        sent: dict[str, int] = {}

        async def listen() -> None:
            async for counts in request_iterator:
                sent.update(counts.sent)

        async with asyncio.TaskGroup() as group:
            listener = group.create_task(listen())
            try:
                sequence = 0
                while not listener.done():
                    sequence += 1
                    loads = await self._loads(dict(sent))
                    yield node_pb2.LoadReport(node=self._node, sequence=sequence, epoch=self.epoch, replicas=loads)
                    await asyncio.sleep(self._every_s)
            finally:
                listener.cancel()


@asynccontextmanager
async def speaking(voice: Voice) -> AsyncIterator[str]:
    """Served on a free port; gives its address."""
    server = grpc.aio.server()
    serve: Any = node_pb2_grpc.add_NodeAgentServicer_to_server
    serve(voice, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(GRACE_S)


def access(api_key: str) -> list[Record]:
    """A tenant who may use everything, and its key; nothing without a key."""
    if not api_key:
        return []
    digest = hashlib.sha256(api_key.encode()).hexdigest()
    return [Tenant(tenant=TENANT), ApiKey(sha256=digest, tenant=TENANT, label="load tests")]

"""Asks an agent to wake or load a model that a request waits for: once per replica, however many requests wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc.aio

from router.fleet.reports import AgentChannels
from router.fleet.view import View
from wire.records import ModelState
from wire.v1 import node_pb2 as pb

log = logging.getLogger(__name__)

COMMAND_LIMIT_S = 900.0
AGAIN_AFTER_S = 5.0
"""A wake that failed is not asked for again sooner."""


class Waker:
    def __init__(self, channels: AgentChannels, view: Callable[[], View], *, on_done: Callable[[], None]) -> None:
        self._channels = channels
        self._view = view
        self._on_done = on_done
        self._wanted: asyncio.Queue[str] = asyncio.Queue()
        self._under_way: set[str] = set()

    def wake(self, replica: str) -> None:
        if replica not in self._under_way:
            self._under_way.add(replica)
            self._wanted.put_nowait(replica)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._wake(await self._wanted.get()))

    async def _wake(self, replica_id: str) -> None:
        fleet = self._view().fleet
        replica = fleet.replicas.get(replica_id)
        node = fleet.nodes.get(replica.node) if replica else None
        try:
            if replica is None or node is None:
                return
            stub = self._channels.stub(node.address)
            command = stub.Wake if replica.state is ModelState.SLEEPING else stub.Load
            log.info("waking %s (%s) for a waiting request", replica_id, replica.state)
            async with asyncio.timeout(COMMAND_LIMIT_S):
                async for progress in command(pb.ReplicaCommand(replica=replica_id)):
                    if progress.error:
                        log.warning("cannot wake %s: %s", replica_id, progress.error)
                        await asyncio.sleep(AGAIN_AFTER_S)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            log.warning("cannot wake %s: %r", replica_id, error)
            await asyncio.sleep(AGAIN_AFTER_S)
        finally:
            self._under_way.discard(replica_id)
            self._on_done()

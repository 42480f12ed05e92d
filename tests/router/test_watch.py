"""What a router goes on believing when the registry forgets a node whose agent still speaks to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from router.fleet.view import View
from router.fleet.watch import RegistryWatch
from tests.router.harness import until
from wire.memory import MemoryRegistry
from wire.records import ModelState, Node, Replica, encode, key

NODE = Node(node="n1", region="eu", address="h:1")
REPLICA = Replica(replica="n1.0", node="n1", region="eu", model="m", address="h:2", state=ModelState.READY)


class Watched:
    def __init__(self) -> None:
        self.registry = MemoryRegistry()
        self.answering = {"n1"}
        self.views: list[View] = []
        self.watch = RegistryWatch(
            self.registry, region="eu", on_view=self.views.append, answering=lambda: self.answering
        )

    async def registered(self) -> int:
        """Under a lease of its own, which is returned."""
        lease = await self.registry.grant(60)
        for record in (REPLICA, NODE):
            revision = await self.registry.put(key(record), encode(record), lease=lease)
        await until(lambda: self.watch.view.fleet.revision >= revision)
        return lease


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[Watched]:
    made = Watched()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(made.watch.run())
        yield made
        task.cancel()


async def test_a_node_whose_lease_ran_out_is_believed_in_as_long_as_its_agent_answers() -> None:
    async with watched() as at:
        lease, seen = await at.registered(), len(at.views)
        await at.registry.revoke(lease)
        await until(lambda: len(at.views) > seen)
        assert ({"m"}, ["n1.0"]) == (at.watch.view.models, list(at.watch.view.fleet.replicas))
        at.answering.clear()
        at.watch.reconsider()
        await until(lambda: not at.watch.view.fleet.nodes)
        assert (set(), ["m"]) == (at.watch.view.models, list(at.watch.view.gone))


async def test_a_node_that_registers_again_never_lacked_its_model() -> None:
    async with watched() as at:
        lease, seen = await at.registered(), len(at.views)
        await at.registry.revoke(lease)
        await until(lambda: len(at.views) > seen)
        await at.registered()
        at.answering.clear()
        assert [] == [view for view in at.views[seen:] if "m" not in view.models]
        assert (["n1"], {"m"}) == (list(at.watch.view.fleet.nodes), at.watch.view.models)

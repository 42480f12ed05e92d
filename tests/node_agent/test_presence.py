"""Presence against the in-process registry: leases lost, outages, changes; nothing is put that has not changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from node_agent.notice import Notice
from node_agent.presence import Presence
from wire.memory import MemoryRegistry
from wire.records import ModelState, Node, Replica, decode, key
from wire.registry import LeaseLost, RegistryUnavailable

SAFETY_S = 20
NODE = Node(node="n1", region="r", address="127.0.0.1:1")
REPLICA = Replica(replica="n1.m.0", node="n1", region="r", model="m", address="127.0.0.1:2", state=ModelState.READY)


class Flaky(MemoryRegistry):
    """Refuses as often as it is told to, and counts what is put."""

    def __init__(self) -> None:
        super().__init__()
        self.puts: list[str] = []
        self.refuse_puts = self.refuse_grants = 0
        self.leases: list[int] = []
        self.lost = asyncio.Event()

    async def grant(self, ttl_s: int) -> int:
        if self.refuse_grants:
            self.refuse_grants -= 1
            raise RegistryUnavailable("no answer")
        self.leases.append(await super().grant(ttl_s))
        return self.leases[-1]

    async def keep_alive(self, lease: int, ttl_s: int) -> None:
        await self.lost.wait()
        self.lost.clear()
        raise LeaseLost("gone")

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        if self.refuse_puts:
            self.refuse_puts -= 1
            raise RegistryUnavailable("no answer")
        self.puts.append(key)
        return await super().put(key, value, lease=lease)


class House:
    def __init__(self) -> None:
        self.registry, self.changed = Flaky(), Notice()
        self.records = [NODE, REPLICA]
        self.presence = Presence(self.registry, lambda: self.records, self.changed, ttl_s=10)

    async def state(self) -> str:
        entry = await self.registry.get(key(REPLICA))
        return decode(Replica, entry.value).state if entry else "absent"

    def change(self, state: ModelState) -> None:
        self.records = [NODE, msgspec.structs.replace(REPLICA, state=state)]
        self.changed.tell()

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(SAFETY_S):
            while not what():
                await asyncio.sleep(0.005)

    async def until_state(self, wanted: str) -> None:
        async with asyncio.timeout(SAFETY_S):
            while await self.state() != wanted:
                await asyncio.sleep(0.005)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(house.presence.run())
        yield house
        running.cancel()
    with contextlib.suppress(Exception):
        await house.registry.close()


async def test_node_and_replicas_are_registered_under_one_lease(house: House) -> None:
    await house.until_state("ready")
    entries = [await house.registry.get(key(record)) for record in house.records]
    assert {house.registry.leases[0]} == {entry.lease for entry in entries if entry}


async def test_only_what_changed_is_put(house: House) -> None:
    await house.until_state("ready")
    house.change(ModelState.DRAINING)
    await house.until_state("draining")
    for _ in range(5):
        house.changed.tell()
        await asyncio.sleep(0.03)
    assert [key(NODE), key(REPLICA), key(REPLICA)] == house.registry.puts


async def test_a_lost_lease_is_replaced_and_everything_put_again(house: House) -> None:
    await house.until_state("ready")
    await house.registry.revoke(house.registry.leases[0])
    assert "absent" == await house.state()
    house.registry.lost.set()
    await house.until_state("ready")
    assert 2 == len(house.registry.leases)


async def test_a_registry_that_does_not_answer_is_tried_until_it_does() -> None:
    house = House()
    house.registry.refuse_grants = 2
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(house.presence.run())
        await house.until_state("ready")
        running.cancel()


async def test_a_put_without_an_answer_is_put_again_under_the_same_lease(house: House) -> None:
    await house.until_state("ready")
    house.registry.refuse_puts = 1
    house.change(ModelState.SLEEPING)
    await house.until_state("sleeping")
    assert 1 == len(house.registry.leases)


async def test_a_lease_found_lost_by_a_put_is_replaced(house: House) -> None:
    await house.until_state("ready")
    await house.registry.revoke(house.registry.leases[0])
    house.change(ModelState.DRAINING)
    await house.until_state("draining")
    assert 2 == len(house.registry.leases)


async def test_leaving_removes_everything_at_once(house: House) -> None:
    await house.until_state("ready")
    await house.presence.leave()
    assert "absent" == await house.state()


async def test_leaving_a_registry_that_is_away_does_not_fail(house: House) -> None:
    await house.until_state("ready")
    await house.registry.close()
    await house.presence.leave()

import asyncio

import httpx

from control.admin import application
from control.watch import FleetWatch, RegionKeeper
from wire.memory import MemoryRegistry
from wire.records import ModelState, Node, Region, Replica, Router, decode, encode, key

NODE = Node(node="node-1", region="local", address="a:1")
REPLICA = Replica(replica="r", node="node-1", region="local", model="m", address="a:2", state=ModelState.READY)
ROUTER = Router(router="router-1", region="local", url="http://127.0.0.1:8000")


class Heard:
    def __init__(self) -> None:
        self.sentences: asyncio.Queue[str] = asyncio.Queue()

    def __call__(self, sentences: list[str]) -> None:
        for sentence in sentences:
            self.sentences.put_nowait(sentence)


async def test_what_changes_in_the_registry_is_told_as_it_happens() -> None:
    registry, heard = MemoryRegistry(), Heard()
    await registry.put(key(NODE), encode(NODE))
    watch = FleetWatch(registry, on_change=heard)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(watch.run())
        assert "node node-1 (unknown) has come, agent at a:1" == await heard.sentences.get()
        await registry.put(key(REPLICA), encode(REPLICA))
        assert "replica r (m) is ready" == await heard.sentences.get()
        await registry.delete(key(REPLICA))
        assert "replica r (m) is gone" == await heard.sentences.get()
        task.cancel()


async def test_the_region_is_told_where_its_routers_are_and_keeps_its_title() -> None:
    registry, heard = MemoryRegistry(), Heard()
    await registry.put(key(Region(region="local")), encode(Region(region="local", title="Here")))
    await registry.put(key(ROUTER), encode(ROUTER))
    watch = FleetWatch(registry, on_change=heard)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watch.run())]
        await heard.sentences.get()
        tasks.append(group.create_task(RegionKeeper(registry, watch, region="local", title="").run()))
        while True:
            entry = await registry.get(key(Region(region="local")))
            assert entry is not None
            if (region := decode(Region, entry.value)).router_urls:
                break
            await asyncio.sleep(0)
        assert Region(region="local", title="Here", router_urls=(ROUTER.url,)) == region
        for task in tasks:
            task.cancel()


async def test_operators_can_ask_for_health_and_the_fleet() -> None:
    registry, heard = MemoryRegistry(), Heard()
    watch = FleetWatch(registry, on_change=heard)
    transport = httpx.ASGITransport(app=application(watch))
    async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
        assert {"status": "ok", "registry": "lost"} == (await client.get("/health")).json()
        assert 503 == (await client.get("/ready")).status_code
        await registry.put(key(NODE), encode(NODE))
        await registry.put(key(REPLICA), encode(REPLICA))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(watch.run())
            await heard.sentences.get()
            await heard.sentences.get()
            task.cancel()
        assert 200 == (await client.get("/ready")).status_code
        fleet = (await client.get("/fleet")).json()
        assert ["node-1"] == [node["node"] for node in fleet["nodes"]]
        assert "1 ready" == fleet["models"][0]["replicas"]

"""What the agent does when asked, over gRPC and by signals, with a simulated engine under it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.integration.agent_house import AgentHouse, agent_house, alive, eventually, last
from wire.records import Replica, decode, prefix
from wire.registry import Changes
from wire.v1 import node_pb2 as pb

R = "n1.sim.0"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AgentHouse]:
    async with agent_house(tmp_path) as house:
        house.start()
        await house.ready()
        yield house


class Stream:
    """A chat stream straight to the engine, as a router would open it."""

    def __init__(self, address: str, tokens: int) -> None:
        self.lines: list[str] = []
        self._body = {"model": "sim", "stream": True, "max_tokens": tokens, "ignore_eos": True, "prompt": "once"}
        self._url = f"http://{address}/v1/completions"

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            try:
                async with http.stream("POST", self._url, json=self._body) as answer:
                    async for line in answer.aiter_lines():
                        self.lines += [line] if line else []
            except httpx.HTTPError as error:
                self.lines.append(f"cut: {error!r}")

    async def begun(self) -> None:
        await eventually(lambda: len(self.lines) > 1, but=lambda: str(self.lines))


async def states(house: AgentHouse, found: list[str]) -> None:
    """What the registry said of the replica, in order; ends when the record is gone."""
    async for news in house.client.watch(prefix(Replica)):
        changes = news.changes if isinstance(news, Changes) else ()
        found += [decode(Replica, change.entry.value).state if change.entry else "gone" for change in changes]
        if "gone" in found:
            return


async def test_sigterm_leaves_the_registry_first_then_lets_streams_end_then_stops(house: AgentHouse) -> None:
    replica = await house.ready()
    stream, said, engine = Stream(replica.address, 60), [], house.engine()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(states(house, said))
        running = tasks.create_task(stream.run())
        await stream.begun()
        house.kill(signal.SIGTERM)
        await eventually(lambda: "draining" in said, but=house.log)
        assert not running.done(), "the stream goes on while routers hear of it"
        assert 0 == await house.exited()
    assert "data: [DONE]" == stream.lines[-1]
    assert ["draining", "gone"] == [state for state in said if state not in ("ready", "on_disk")]
    assert await house.left_the_registry()
    assert not alive(engine["pid"])


async def test_a_second_signal_stops_at_once(house: AgentHouse) -> None:
    stream, engine = Stream((await house.ready()).address, 100_000), house.engine()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stream.run())
        await stream.begun()
        house.kill(signal.SIGTERM)
        await eventually(lambda: "a second signal" in house.log())
        asked = time.monotonic()
        house.kill(signal.SIGINT)
        assert 0 == await house.exited()
    assert time.monotonic() - asked < house.settings["drain_limit_s"]
    assert "data: [DONE]" != stream.lines[-1]
    assert not alive(engine["pid"])


async def test_streams_that_outlast_the_drain_limit_are_cut(tmp_path: Path) -> None:
    async with agent_house(tmp_path, drain_limit_s=0.5) as house:
        house.start()
        stream = Stream((await house.ready()).address, 100_000)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stream.run())
            await stream.begun()
            async with house.stub() as stub:
                ended = await last(stub.Unload(pb.ReplicaCommand(replica=R)))
        assert "" == ended.error
        assert "did not end in 0.5 s and are cut" in house.log()
        assert "cut" in stream.lines[-1]


async def test_a_model_is_unloaded_and_loaded_again(house: AgentHouse) -> None:
    pid = house.engine()["pid"]
    async with house.stub() as stub:
        assert "" == (await last(stub.Unload(pb.ReplicaCommand(replica=R)))).error
        assert not alive(pid)
        await house.ready(state="on_disk")
        assert "" == (await last(stub.Load(pb.ReplicaCommand(replica=R)))).error
        assert 2 == (await house.ready()).generation


async def test_a_model_sleeps_and_wakes_in_the_same_process(house: AgentHouse) -> None:
    async with house.stub() as stub:
        assert "" == (await last(stub.Sleep(pb.SleepCommand(replica=R, level=1)))).error
        await house.ready(state="sleeping")
        assert "" == (await last(stub.Wake(pb.ReplicaCommand(replica=R)))).error
        assert 1 == (await house.ready()).generation


async def test_a_sleeper_is_left_asleep_by_the_next_agent(house: AgentHouse) -> None:
    async with house.stub() as stub:
        await last(stub.Sleep(pb.SleepCommand(replica=R, level=1)))
    pid = house.engine()["pid"]
    house.kill()
    await eventually(house.left_the_registry)
    house.start()
    await house.ready(state="sleeping")
    assert pid == house.engine()["pid"]


async def test_a_node_drains_and_comes_back_without_stopping_its_engines(house: AgentHouse) -> None:
    pid = house.engine()["pid"]
    async with house.stub() as stub:
        assert "" == (await last(stub.Drain(pb.DrainCommand()))).error
        await house.ready(state="draining")
        node = await house.node()
        assert node is not None
        assert node.draining
        refused = await last(stub.Load(pb.ReplicaCommand(replica=R)))
        assert f"{R} is draining; undrain it first" == refused.error
        assert "" == (await last(stub.Undrain(pb.UndrainCommand()))).error
    await house.ready()
    assert pid == house.engine()["pid"]


async def test_a_drain_outlives_its_agent_until_somebody_ends_it(house: AgentHouse) -> None:
    pid = house.engine()["pid"]
    async with house.stub() as stub:
        assert "" == (await last(stub.Drain(pb.DrainCommand()))).error
    house.kill()
    await eventually(house.left_the_registry)
    house.start()
    await house.ready(state="draining")
    node = await house.node()
    assert node is not None
    assert node.draining
    assert pid == house.engine()["pid"]
    async with house.stub() as stub:
        assert "" == (await last(stub.Undrain(pb.UndrainCommand()))).error
    await house.ready()
    assert pid == house.engine()["pid"]
    assert b'"held":{}' in (house.path / "state" / "memory.json").read_bytes()


@pytest.mark.slow
async def test_an_agent_that_is_stopped_and_started_is_not_drained(house: AgentHouse) -> None:
    house.kill(signal.SIGTERM)
    assert 0 == await house.exited()
    house.start()
    await house.ready()
    node = await house.node()
    assert node is not None
    assert not node.draining


@pytest.mark.slow
async def test_a_node_drained_to_the_end_starts_no_engine_after_a_restart(house: AgentHouse) -> None:
    async with house.stub() as stub:
        assert "" == (await last(stub.Drain(pb.DrainCommand(limit_s=5.0, stop=True)))).error
    house.kill(signal.SIGTERM)
    assert 0 == await house.exited()
    house.start()
    await house.ready(state="on_disk")
    async with house.stub() as stub:
        assert "" == (await last(stub.Undrain(pb.UndrainCommand()))).error
    await house.ready()


async def test_what_cannot_be_done_is_refused_in_a_sentence_with_a_remedy(tmp_path: Path) -> None:
    models = [
        {"name": "a", "engine": "simulated"},
        {"name": "b", "engine": "simulated", "start": "on_demand"},
    ]
    async with agent_house(tmp_path, models=models, slots=1) as house:
        house.start()
        await house.ready(name="n1.a.0")
        async with house.stub() as stub:
            full = await last(stub.Load(pb.ReplicaCommand(replica="n1.b.0")))
            unknown = await last(stub.Load(pb.ReplicaCommand(replica="n1.c.0")))
            sleepless = await last(stub.Sleep(pb.SleepCommand(replica="n1.a.0", level=1)))
        house.engine("n1.a.0")
    assert "n1.b.0 needs 1 slots and 0 of 1 are free; sleep or unload one of n1.a.0" == full.error
    assert "no replica 'n1.c.0' on node n1; it has: n1.a.0, n1.b.0" == unknown.error
    assert "set sleep = true" in sleepless.error


async def test_list_tells_people_what_they_need_to_look_further(house: AgentHouse) -> None:
    async with house.stub() as stub:
        listed = await stub.List(pb.ListRequest())
    (status,) = listed.replicas
    engine = house.engine()
    assert ("n1", R, "sim", pb.READY, 1) == (
        listed.node,
        status.replica,
        status.model,
        status.state,
        status.generation,
    )
    assert engine["pid"] == status.pid
    assert f"127.0.0.1:{engine['port']}" == status.address
    assert str(house.path / "state" / "engines" / R / "engine.log") == status.log_path


class Watch:
    """A router's side of WatchLoad."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, pb.LoadReport]] = []
        self.sent: asyncio.Queue[dict[str, int]] = asyncio.Queue()

    async def run(self, stub: object, router: str = "r1") -> None:
        async for report in stub.WatchLoad(self._counts(router)):  # type: ignore[attr-defined]
            self.reports.append((time.monotonic(), report))

    async def _counts(self, router: str) -> AsyncIterator[pb.SentCounts]:
        while True:
            yield pb.SentCounts(router_id=router, sent=await self.sent.get())

    @property
    def newest(self) -> pb.ReplicaLoad:
        return self.reports[-1][1].replicas[0]


async def test_reports_come_in_order_and_soon_show_what_an_engine_does(house: AgentHouse) -> None:
    stream, watch = Stream((await house.ready()).address, 60), Watch()
    async with house.stub() as stub, asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch.run(stub))
        await eventually(lambda: watch.reports)
        tasks.create_task(stream.run())
        await stream.begun()
        watch.sent.put_nowait({R: 1})
        await eventually(lambda: 1 == watch.newest.running)
        await eventually(lambda: 1 == watch.newest.seen)
        await eventually(lambda: 0 == watch.newest.running)
        await eventually(lambda: watch.newest.generation_tokens >= 60)
        watching.cancel()
    sequences = [report.sequence for _, report in watch.reports]
    assert sequences == sorted(set(sequences))
    assert 1 == len({report.epoch for _, report in watch.reports})


async def test_reports_are_paced_by_the_agents_clock_whatever_happens(house: AgentHouse) -> None:
    # Sequence numbers count the agent's reports, so pacing can be checked over any span without trusting arrival times.
    watch, stream = Watch(), Stream((await house.ready()).address, 80)
    async with house.stub() as stub, asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch.run(stub))
        tasks.create_task(stream.run())
        await eventually(lambda: watch.reports and watch.reports[-1][0] - watch.reports[0][0] > 2.0)
        watching.cancel()
    (began, first), (ended, final) = watch.reports[0], watch.reports[-1]
    count, span_s = final.sequence - first.sequence, ended - began
    assert count <= span_s / 0.05 + 2, "closer than 50 ms"
    assert count >= span_s / 0.25 / 2, "farther than 250 ms, even for a machine that is twice too slow"


async def test_two_routers_are_told_each_their_own_count(house: AgentHouse) -> None:
    one, two = Watch(), Watch()
    async with house.stub() as stub, asyncio.TaskGroup() as tasks:
        watching = [tasks.create_task(one.run(stub, "r1")), tasks.create_task(two.run(stub, "r2"))]
        one.sent.put_nowait({R: 3})
        two.sent.put_nowait({R: 50, "n1.unknown.0": 9})
        await eventually(lambda: one.reports and two.reports and (3, 50) == (one.newest.seen, two.newest.seen))
        for task in watching:
            task.cancel()

"""Replicas that are to be left at once: when their work may go, and what becomes of it."""

from __future__ import annotations

import asyncio

import msgspec

from router.core.model import Fleet
from router.fleet.view import to_be_left
from tests.router.core.fleets import fleet, replica
from tests.router.harness import ANSWER, WHOLE, Exchange, plays, router_with, until
from wire.records import ModelState

LEFT = {"state": ModelState.DRAINING, "moving": True}


def names(of: Fleet) -> set[str]:
    return set(to_be_left(of))


def test_a_replica_is_left_when_another_ready_one_could_take_over() -> None:
    left = replica("a", ModelState.DRAINING, moving=True)
    assert {"a"} == names(fleet(left, replica("b")))
    assert set() == names(fleet(left))
    assert set() == names(fleet(left, replica("b", ModelState.LOADING)))
    assert set() == names(fleet(left, replica("b", model="other")))
    assert set() == names(fleet(left, replica("b", ModelState.READY, moving=True)))
    assert set() == names(fleet(left, replica("b"), draining=("n-b",)))


def test_a_replica_with_adapters_is_left_only_for_one_that_has_them_too() -> None:
    left = replica("a", ModelState.DRAINING, moving=True, adapters=("law",))
    assert set() == names(fleet(left, replica("b")))
    assert {"a"} == names(fleet(left, replica("b", adapters=("law", "med"))))


async def waits(exchange: Exchange) -> None:
    await exchange.client_left()


async def test_requests_without_a_token_leave_too_and_cost_no_retry() -> None:
    async with router_with(waits, retry_ratio=0.0, retry_floor_per_s=0.0) as (router, engines):
        first = next(iter(router.app.watch.view.fleet.replicas.values()))
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(router.chat(stream=stream)) for stream in (True, False)]
            await until(lambda: len(engines[0].exchanges) == 2)
            engines[0].script = plays
            await router.add_engine(engines[0], name="other.0")
            await router.put(msgspec.structs.replace(first, **LEFT))
        assert WHOLE == asked[1].result().content
        assert [200, 200] == [answer.result().status_code for answer in asked]
        assert {("moved", "ok")} == {tuple(a.code for a in r.attempts) for r in router.records()}


async def test_streams_stay_on_a_replica_that_nobody_could_replace() -> None:
    release = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        exchange.start_stream()
        await exchange.send(ANSWER[0])
        await release.wait()
        for data in ANSWER[1:]:
            await exchange.send(data)
        exchange.writer.write(b"0\r\n\r\n")

    async with router_with(slow) as (router, engines):
        first = next(iter(router.app.watch.view.fleet.replicas.values()))
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(router.chat(temperature=0))
            await until(lambda: len(engines[0].exchanges) == 1)
            await router.put(msgspec.structs.replace(first, **LEFT))
            await until(lambda: router.app.watch.view.fleet.replicas[first.replica].moving)
            release.set()
        assert answer.result().content.endswith(b"[DONE]\n\n")
        assert ["ok"] == [a.code for a in router.records()[0].attempts]


async def test_a_stream_that_falls_silent_with_nobody_speaking_for_its_engine_goes_on_elsewhere() -> None:
    async def stalls(exchange: Exchange) -> None:
        exchange.start_stream()
        await exchange.send(ANSWER[0])
        await exchange.client_left()

    async with router_with(stalls) as (router, engines):
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(router.chat(temperature=0))
            await until(lambda: len(engines[0].exchanges) == 1)
            engines[0].script = plays
        assert answer.result().content.endswith(b"[DONE]\n\n")
        assert ["stalled", "ok"] == [a.code for a in router.records()[0].attempts]

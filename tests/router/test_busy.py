"""Retry-After of engines, through the whole router on real sockets."""

from __future__ import annotations

from tests.router.harness import ANSWER, DONE, Engine, Exchange, Script, plays, router_with

SHOWN = b"".join([*ANSWER[:3], DONE])


def busy_for(seconds: int, *, status: int = 503) -> Script:
    async def script(exchange: Exchange) -> None:
        body = b'{"error":{"message":"busy","type":"x","param":null,"code":%d}}' % status
        await exchange.answer(status, body, f"retry-after: {seconds}")

    return script


async def test_a_replica_that_names_a_time_is_not_asked_again_before_it() -> None:
    async with router_with(busy_for(20, status=429), plays) as (router, engines):
        for _ in range(12):
            assert SHOWN == (await router.chat()).content
        assert 1 == len(engines[0].exchanges)
        assert 12 == len(engines[1].exchanges)


async def test_a_busy_replica_that_is_the_only_one_is_asked_all_the_same() -> None:
    async with router_with(busy_for(20)) as (router, engines):
        for _ in range(3):
            answer = await router.chat()
            assert (503, "20") == (answer.status_code, answer.headers["retry-after"])
        assert 3 == len(engines[0].exchanges)


async def test_when_all_are_busy_the_client_gets_the_least_of_their_times_and_none_is_asked_again() -> None:
    async with router_with(busy_for(25), busy_for(9), busy_for(99)) as (router, engines):
        first = await router.chat()
        assert ("engine_busy", "9") == (first.json()["error"]["code"], first.headers["retry-after"])
        second = await router.chat()
        assert (503, "engine_busy") == (second.status_code, second.json()["error"]["code"])
        assert second.headers["retry-after"] in ("8", "9")
        assert [1, 1, 1] == [len(e.exchanges) for e in engines]
        assert [3, 0] == [len(r.attempts) for r in router.records()]
        assert 0 == sum(router.counts().values())


async def test_a_new_replica_takes_over_from_busy_ones() -> None:
    async with router_with(busy_for(20), busy_for(20)) as (router, _):
        assert 503 == (await router.chat()).status_code
        async with Engine(plays) as fresh:
            await router.add_engine(fresh)
            assert SHOWN == (await router.chat()).content


async def test_as_many_replicas_as_may_be_asked_may_be_busy_besides() -> None:
    async with router_with(busy_for(20), busy_for(20), plays, attempts_limit=2) as (router, _):
        assert SHOWN == (await router.chat()).content
    async with router_with(*[busy_for(20)] * 7, attempts_limit=2) as (router, engines):
        assert 503 == (await router.chat()).status_code
        assert 4 == sum(len(engine.exchanges) for engine in engines)

"""Late first tokens that a second replica is asked for, through the whole router on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import msgspec
import pytest

from tests.router.harness import ANSWER, DONE, MODEL, WHOLE, Engine, Exchange, Router, Script, plays, router_with, until
from wire.records import ModelPolicy, ModelState

SHOWN = b"".join([*ANSWER[:3], DONE])
OTHER = [data.replace(b"chatcmpl-1", b"chatcmpl-2") for data in ANSWER]
SHOWN_BY_OTHER = b"".join([*OTHER[:3], DONE])


async def never_answers(exchange: Exchange) -> None:
    await exchange.client_left()


async def answers_late(exchange: Exchange) -> None:
    await asyncio.sleep(1.2)
    await plays(exchange)


@contextlib.asynccontextmanager
async def late(
    first: Script, second: Script, *, hedge: bool = True, **settings: object
) -> AsyncIterator[tuple[Router, list[Engine]]]:
    """A request meets the first engine; the second comes up when it is there."""
    async with router_with(first, **{"hedge_ratio": 1.0, **settings}) as (router, engines), Engine(second) as other:
        policy = ModelPolicy(model=MODEL, hedge=hedge)
        await router.put(policy)
        await until(lambda: router.app.watch.view.fleet.models.get(MODEL) == policy)
        waiting = await router.add_engine(other, state=ModelState.FAILED)

        async def come_up() -> None:
            await until(lambda: len(engines[0].exchanges) == 1)
            await router.put(msgspec.structs.replace(waiting, state=ModelState.READY))

        async with asyncio.TaskGroup() as group:
            group.create_task(come_up())
            yield router, [*engines, other]
        await until(lambda: sum(router.counts().values()) == 0)


def kinds(router: Router) -> list[tuple[str, str]]:
    (record,) = router.records()
    return [(a.kind, a.code) for a in record.attempts]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_late_first_token_is_got_from_another_replica_and_the_first_is_cancelled_at_once(stream: bool) -> None:
    async with late(never_answers, plays) as (router, engines):
        answer = await router.chat(stream=stream, max_tokens=1, headers={"x-switchyard-explain": "1"})
        assert (SHOWN if stream else WHOLE) == answer.content
        assert f"replica=n-{engines[1].port}" in answer.headers["x-switchyard-decision"]
        await until(lambda: engines[0].open == 0)
        assert [("first", "outrun"), ("hedge", "ok")] == kinds(router)
        (record,) = router.records()
        assert ("ok", 5, 3) == (record.code, record.prompt_tokens, record.output_tokens)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_first_replica_that_is_sooner_after_all_wins_and_the_hedge_is_cancelled_at_once(stream: bool) -> None:
    hedged = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await hedged.wait()
        await plays(exchange)

    async def is_told(exchange: Exchange) -> None:
        hedged.set()
        await never_answers(exchange)

    async with late(waits, is_told) as (router, engines):
        answer = await router.chat(stream=stream, max_tokens=1)
        assert (SHOWN if stream else WHOLE) == answer.content
        await until(lambda: engines[1].open == 0)
        assert [("hedge", "outrun"), ("first", "ok")] == kinds(router)


async def test_the_client_never_sees_two_answers_even_when_both_come_at_the_same_moment() -> None:
    both = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await both.wait()
        await exchange.stream(ANSWER)

    async def comes_too(exchange: Exchange) -> None:
        both.set()
        await exchange.stream(OTHER)

    async with late(waits, comes_too) as (router, _):
        answer = await router.chat()
        assert answer.content in (SHOWN, SHOWN_BY_OTHER)
        assert {"ok", "outrun"} == {code for _, code in kinds(router)}
        assert "ok" == kinds(router)[-1][1]


async def test_without_the_policy_nobody_is_hedged() -> None:
    async with late(answers_late, plays, hedge=False) as (router, engines):
        assert SHOWN == (await router.chat()).content
        assert ([("first", "ok")], []) == (kinds(router), engines[1].exchanges)


async def test_a_spent_budget_hedges_nobody_more() -> None:
    async with late(never_answers, plays, hedge_ratio=0.0) as (router, engines):
        assert SHOWN == (await router.chat()).content
        for engine in engines:
            engine.script = answers_late
        assert SHOWN == (await router.chat()).content
        assert [["first", "hedge"], ["first"]] == [[a.kind for a in r.attempts] for r in router.records()]


async def test_a_hedge_that_fails_leaves_the_first_to_answer() -> None:
    failed = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await failed.wait()
        await plays(exchange)

    async def fails(exchange: Exchange) -> None:
        await exchange.answer(500, b'{"error":{"message":"boom","type":"x","param":null,"code":500}}')
        failed.set()

    async with late(waits, fails) as (router, _):
        assert SHOWN == (await router.chat()).content
        assert {("hedge", "engine_error"), ("first", "ok")} == set(kinds(router))


async def test_a_first_that_breaks_while_it_is_hedged_leaves_the_hedge_to_answer() -> None:
    hedged = asyncio.Event()

    async def breaks(exchange: Exchange) -> None:
        await hedged.wait()
        exchange.cut()

    async def answers(exchange: Exchange) -> None:
        hedged.set()
        await asyncio.sleep(0.2)
        await plays(exchange)

    async with late(breaks, answers) as (router, _):
        assert SHOWN == (await router.chat()).content
        assert [("first", "engine_broke"), ("hedge", "ok")] == kinds(router)


async def test_when_both_fail_the_client_is_told_once_and_neither_is_asked_again() -> None:
    hedged = asyncio.Event()

    async def breaks(exchange: Exchange) -> None:
        await hedged.wait()
        exchange.cut()

    async def breaks_too(exchange: Exchange) -> None:
        hedged.set()
        exchange.cut()

    async with late(breaks, breaks_too) as (router, engines):
        answer = await router.chat()
        assert (502, "engine_broke") == (answer.status_code, answer.json()["error"]["code"])
        assert [1, 1] == [len(e.exchanges) for e in engines]


async def test_a_hedge_that_won_and_breaks_later_goes_on_like_any_stream() -> None:
    async def cuts(exchange: Exchange) -> None:
        await exchange.stream(ANSWER[:2], end=False)
        engines[0].script = plays
        exchange.cut()

    async with late(never_answers, cuts) as (router, engines):
        assert SHOWN == (await router.chat(temperature=0)).content
        assert [("first", "outrun"), ("hedge", "engine_broke"), ("resume", "ok")] == kinds(router)
        (record,) = router.records()
        assert (5, 3) == (record.prompt_tokens, record.output_tokens)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_that_leaves_while_two_are_asked_cancels_both(stream: bool) -> None:
    async with late(never_answers, never_answers) as (router, engines):
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(router.chat(stream=stream, max_tokens=1))
            await until(lambda: len(engines[1].exchanges) == 1)
            asked.cancel()
        await until(lambda: engines[0].open == engines[1].open == 0)
        await until(lambda: len(router.records()) == 1)
        assert [("first", "client_gone"), ("hedge", "client_gone")] == kinds(router)


FATES = ("answers", "fails", "cuts before", "cuts after", "rejects", "says nothing")


def fated(rng: random.Random, answer: list[bytes], playing: set[Exchange], *, delays_s: tuple[float, float]) -> Script:
    """Something happens at some moment, perhaps the same as on the other side."""

    async def script(exchange: Exchange) -> None:
        playing.add(exchange)
        await asyncio.sleep(rng.choice((*delays_s, rng.uniform(*delays_s))))
        playing.remove(exchange)
        match rng.choice(FATES):
            case "answers":
                streams = msgspec.json.decode(exchange.body).get("stream")
                await (exchange.stream(answer) if streams else exchange.answer(200, WHOLE))
            case "fails":
                await exchange.answer(500, b'{"error":{"message":"boom","type":"x","param":null,"code":500}}')
            case "cuts before":
                exchange.cut()
            case "cuts after":
                await exchange.stream(answer[:1], end=False)
                exchange.cut()
            case "rejects":
                await exchange.answer(400, b'{"error":{"message":"long","type":"x","param":null,"code":400}}')
            case _:
                await exchange.client_left()

    return script


async def one_race(seed: int) -> int:
    """Returns how many hedges there were."""
    rng = random.Random(seed)
    playing: set[Exchange] = set()
    first = fated(rng, ANSWER, playing, delays_s=(1.1, 1.6))
    second = fated(rng, OTHER, playing, delays_s=(0.0, 0.4))
    async with late(first, second, resume_limit_s=0.5) as (router, _):
        headers = {"x-switchyard-total-limit-s": "3"}
        asked = router.chat(stream=rng.random() < 0.6, max_tokens=1, temperature=0, headers=headers)
        answer = None
        with contextlib.suppress(TimeoutError):
            answer = await asyncio.wait_for(asked, rng.choice((1.1, 15.0, 15.0, 15.0)))
        await until(lambda: sum(router.counts().values()) == 0)
        await until(lambda: not playing)
        (record,) = router.records()
        assert all(a.duration_s >= 0.0 for a in record.attempts)
        assert (record.code == "ok") == (["ok"] == [a.code for a in record.attempts if a.code == "ok"])
        if answer is not None and record.code == "ok":
            text = answer.content
            assert text in (WHOLE, SHOWN, SHOWN_BY_OTHER) or (1, 1) == (text.count(b'"one"'), text.count(b'" three"'))
        return sum(a.kind == "hedge" for a in record.attempts)


async def test_whatever_happens_to_the_two_and_when_there_is_one_answer_one_record_and_nothing_left() -> None:
    async with asyncio.TaskGroup() as group:
        races = [group.create_task(one_race(seed)) for seed in range(16)]
    assert sum(race.result() for race in races) >= 4

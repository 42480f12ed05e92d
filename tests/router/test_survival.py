"""Streams whose engine breaks in the middle, through the whole router on real sockets."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.router.harness import ANSWER, DONE, MODEL, Engine, Exchange, event, plays, router_with, running_router, until
from wire.records import ModelState

SHOWN = b"".join([*ANSWER[:3], DONE])


async def cuts(exchange: Exchange) -> None:
    await exchange.stream(ANSWER[:2], end=False)
    exchange.cut()


async def closes_cleanly(exchange: Exchange) -> None:
    await exchange.stream(ANSWER[:2])


async def dies_in_band(exchange: Exchange) -> None:
    await exchange.stream([*ANSWER[:2], event('{"error": {"message": "EngineCore died", "code": 500}}'), DONE])


async def aborts(exchange: Exchange) -> None:
    await exchange.stream([*ANSWER[:2], ANSWER[2].replace(b'"stop"', b'"abort"'), DONE])


async def talks_nonsense(exchange: Exchange) -> None:
    await exchange.stream([*ANSWER[:2], event("{nonsense")], end=False)
    await exchange.client_left()


async def is_done_too_early(exchange: Exchange) -> None:
    await exchange.stream([*ANSWER[:2], DONE])


async def leaves_half_an_event(exchange: Exchange) -> None:
    await exchange.stream([*ANSWER[:2], ANSWER[2][:30]], end=False)
    exchange.cut()


@pytest.mark.parametrize(
    "fault",
    [cuts, closes_cleanly, dies_in_band, aborts, talks_nonsense, is_done_too_early, leaves_half_an_event],
    ids=lambda f: f.__name__,
)
async def test_a_stream_that_breaks_goes_on_elsewhere_and_the_client_sees_one_stream(fault) -> None:  # type: ignore[no-untyped-def]
    async with router_with(fault, plays) as (router, engines):
        for _ in range(6):  # ties are broken by chance: some of these meet the faulty engine first
            answer = await router.chat(temperature=0)
            assert SHOWN == answer.content
        met = [r for r in router.records() if len(r.attempts) == 2]
        assert len(met) == len(engines[0].exchanges)
        assert {"ok"} == {r.code for r in router.records()}
        assert {("first", "resume")} == {tuple(a.kind for a in r.attempts) for r in met} or not met
        assert 0 == sum(router.counts().values())


async def test_a_continued_stream_is_charged_once() -> None:
    async with router_with(cuts, plays) as (router, _):
        for _ in range(6):
            await router.chat(temperature=0, stream_options={"include_usage": True})
        assert {(5, 3)} == {(r.prompt_tokens, r.output_tokens) for r in router.records()}


async def test_a_continuation_that_contradicts_what_was_delivered_is_never_spliced() -> None:
    other = [data.replace(b" two", b" zwei") for data in ANSWER]

    async def differs(exchange: Exchange) -> None:
        await exchange.stream(other)

    async with router_with(cuts, resume_limit_s=2.0) as (router, engines):
        answer_task = router.chat(temperature=0)
        engines[0].script = _first_then(cuts, differs)
        answer = await answer_task
        assert b"zwei" not in answer.content
        assert b'"error"' in answer.content
        assert b"[DONE]" not in answer.content


def _first_then(first, then):  # type: ignore[no-untyped-def]
    """A script that plays `first` once and `then` ever after."""
    calls: list[int] = []

    async def script(exchange: Exchange) -> None:
        calls.append(1)
        await (first if len(calls) == 1 else then)(exchange)

    return script


async def test_a_stream_on_the_only_replica_waits_for_it_to_come_back() -> None:
    async with router_with(plays) as (router, engines):
        engines[0].script = _first_then(cuts, plays)
        assert SHOWN == (await router.chat(temperature=0)).content


async def test_choices_that_broke_at_different_places_go_on_one_after_the_other() -> None:
    """Each has other limits left, and a continuation by ids has one for all of its prompts."""

    async def counts(exchange: Exchange) -> None:
        """Says of prompt [p, ...] the ids 10 p + its length, three in all; the first time it breaks on the way."""
        asked = msgspec.json.decode(exchange.body)
        prompts = asked["prompt"] if isinstance(asked["prompt"][0], list) else [asked["prompt"]]
        first = prompts == [[1], [2]]
        said = [
            event(
                f'{{"id":"cmpl-1","object":"text_completion","created":1,"model":"tiny","choices":[{{"index":{index},'
                f'"text":"{10 * prompt[0] + length} ","logprobs":null,'
                f'"finish_reason":{"null" if length < 3 else chr(34) + "length" + chr(34)},"stop_reason":null,'
                f'"prompt_token_ids":{prompt if length == 1 else "null"},"token_ids":[{10 * prompt[0] + length}]}}]}}'
            )
            for length in range(1, 4)
            for index, prompt in enumerate(prompts)
            if length >= len(prompt)
        ]
        await exchange.stream(said[:3] if first else [*said, DONE], end=not first)
        if first:
            exchange.cut()

    async with running_router() as router, Engine(counts) as one, Engine(counts) as other:
        for engine in (one, other):
            await router.add_engine(engine, token_ids=True)
        body = {"model": MODEL, "prompt": [[1], [2]], "max_tokens": 3, "temperature": 0, "stream": True}
        answer = await router.client.post("/v1/completions", json=body)
        texts = {0: "", 1: ""}
        for line in answer.text.split("\n\n")[:-2]:
            (choice,) = msgspec.json.decode(line.removeprefix("data: "))["choices"]
            texts[choice["index"]] += choice["text"]
        assert ({0: "11 12 13 ", 1: "21 22 23 "}, True) == (texts, answer.content.endswith(DONE))
        assert 3 == len(one.exchanges) + len(other.exchanges)


async def test_a_stream_with_ids_goes_on_by_replay_where_the_other_engine_takes_none() -> None:
    def said(length: int) -> bytes:
        end = '"length"' if length == 3 else "null"
        return event(
            f'{{"id":"cmpl-1","object":"text_completion","created":1,"model":"tiny","choices":[{{"index":0,'
            f'"text":"{length} ","logprobs":null,"finish_reason":{end},"stop_reason":null,'
            f'"prompt_token_ids":{"[1]" if length == 1 else "null"},"token_ids":[{10 + length}]}}]}}'
        )

    async def breaks(exchange: Exchange) -> None:
        await exchange.stream([said(1)], end=False)
        exchange.cut()

    async def takes_no_ids(exchange: Exchange) -> None:
        if msgspec.json.decode(exchange.body)["prompt"] == [1]:
            await exchange.stream([said(1), said(2), said(3), DONE])
        else:
            await exchange.answer(400, b'{"error":{"message":"what ids?"}}')

    async with running_router() as router, Engine(breaks) as one, Engine(takes_no_ids) as other:
        await router.add_engine(one, token_ids=True)
        body = {"model": MODEL, "prompt": [1], "max_tokens": 3, "temperature": 0, "stream": True}
        async with router.client.stream("POST", "/v1/completions", json=body) as answer:
            parts = answer.aiter_raw()
            got = await anext(parts)
            await router.add_engine(other)
            async for part in parts:
                got += part
        texts = [msgspec.json.decode(line[6:])["choices"][0]["text"] for line in got.split(b"\n\n")[:-2]]
        assert ["1 ", "2 ", "3 "] == texts


async def test_streams_leave_a_replica_that_is_drained_now_without_a_client_noticing() -> None:
    async def begins(exchange: Exchange) -> None:
        exchange.start_stream()
        await exchange.send(ANSWER[0])
        await exchange.client_left()

    async with router_with(begins) as (router, engines):
        asked = router.chat(temperature=0)
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(asked)
            await until(lambda: len(engines[0].exchanges) == 1)
            first = next(iter(router.app.watch.view.fleet.replicas.values()))
            engines[0].script = plays
            await router.add_engine(engines[0], name="other.0")
            await router.put(msgspec.structs.replace(first, state=ModelState.DRAINING, moving=True))
        assert SHOWN == answer.result().content
        assert ["moved", "ok"] == [a.code for a in router.records()[0].attempts]


async def test_why_tells_the_story_of_a_stream_that_went_on_elsewhere_to_its_tenant_only() -> None:
    async with router_with(cuts, plays) as (router, engines):
        while not engines[0].exchanges:
            answer = await router.chat(temperature=0, headers={"x-request-id": "told"})
        assert SHOWN == answer.content
        story = (await router.client.get("/admin/why/told")).text
        assert "engine_broke after 2 events" in story
        assert (
            f"resumed on {next(r for r in router.app.watch.view.fleet.replicas if str(engines[1].port) in r)}" in story
        )
        assert "ended ok" in story
        stranger = await router.client.get("/admin/why/told", headers={"authorization": "Bearer x"})
        assert (401, 404) == (stranger.status_code, (await router.client.get("/admin/why/other")).status_code)

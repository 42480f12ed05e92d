"""A model that thinks before it answers: its sampled streams get a seed of ours, as only a replay can continue them."""

from __future__ import annotations

import msgspec
import pytest

from tests.router.harness import DONE, USAGE, Exchange, event, router_with

THOUGHTS = ("hm", ", so", ", well")


def said(channel: str, text: str, *, finish: str = "null") -> bytes:
    return event(
        '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny","choices":'
        f'[{{"index":0,"delta":{{"{channel}":"{text}"}},"logprobs":null,"finish_reason":{finish}}}]}}'
    )


def answer(channel: str) -> list[bytes]:
    thoughts = [said(channel, text) for text in THOUGHTS]
    return [*thoughts, said("content", "yes", finish='"stop"'), USAGE, DONE]


def seed_of(exchange: Exchange) -> int | None:
    return msgspec.json.decode(exchange.body, type=dict[str, object]).get("seed")  # type: ignore[return-value]


@pytest.mark.parametrize("channel", ["reasoning", "reasoning_content"])
async def test_once_it_was_seen_to_think_a_stream_broken_within_its_thoughts_is_replayed(channel: str) -> None:
    """The next engine must be asked with the seed of the first, and the client gets each thought once."""
    cuts: list[bool] = []

    async def thinks(exchange: Exchange) -> None:
        if cuts:
            cuts.clear()
            await exchange.stream(answer(channel)[:2], end=False)
            exchange.cut()
        else:
            await exchange.stream(answer(channel))

    async with router_with(thinks, thinks) as (router, engines):
        whole = await router.chat()
        cuts.append(True)
        broken = await router.chat()
        asked = [exchange for engine in engines for exchange in engine.exchanges]
    seeds = [seed_of(exchange) for exchange in asked]
    assert whole.text == broken.text
    assert [1, 2] == sorted(seeds.count(seed) for seed in set(seeds))
    assert 1 == seeds.count(None)


async def test_a_model_that_only_answers_gets_no_seed() -> None:
    async def answers(exchange: Exchange) -> None:
        await exchange.stream([said("content", "yes", finish='"stop"'), USAGE, DONE])

    async with router_with(answers) as (router, engines):
        for _ in range(3):
            await router.chat()
        assert [None] * 3 == [seed_of(exchange) for exchange in engines[0].exchanges]


async def test_the_clients_own_seed_stays() -> None:
    async def thinks(exchange: Exchange) -> None:
        await exchange.stream(answer("reasoning"))

    async with router_with(thinks) as (router, engines):
        for _ in range(2):
            await router.chat(seed=7)
        assert [7, 7] == [seed_of(exchange) for exchange in engines[0].exchanges]

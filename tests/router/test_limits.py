"""Time limits of a model and of a single request, through the whole router on real sockets."""

from __future__ import annotations

import asyncio

import pytest

from router.core.model import Shape
from tests.router.harness import ANSWER, DONE, MODEL, Exchange, Router, plays, router_with, until
from wire.records import ModelPolicy

SHOWN = b"".join([*ANSWER[:3], DONE])
FIRST, BETWEEN, TOTAL = (f"x-switchyard-{name}-limit-s" for name in ("first-token", "between-tokens", "total"))


async def never_answers(exchange: Exchange) -> None:
    await exchange.client_left()


async def falls_silent(exchange: Exchange) -> None:
    exchange.start_stream()
    await exchange.send(ANSWER[0])
    await exchange.client_left()


async def set_policy(router: Router, **fields: float) -> None:
    policy = ModelPolicy(model=MODEL, **fields)  # type: ignore[arg-type]
    await router.put(policy)
    await until(lambda: router.app.watch.view.fleet.models.get(MODEL) == policy)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_is_told_when_its_own_first_token_limit_is_over_and_no_other_replica_is_asked(
    stream: bool,
) -> None:
    async with router_with(never_answers, never_answers) as (router, engines):
        answer = await router.chat(stream=stream, headers={FIRST: "0.3"})
        assert (504, "first_token_timeout") == (answer.status_code, answer.json()["error"]["code"])
        assert 1 == sum(len(e.exchanges) for e in engines)
        await until(lambda: not any(e.open for e in engines))
        assert 0 == sum(router.counts().values())


async def test_the_policys_first_token_limit_is_each_replicas_and_others_are_asked() -> None:
    async with router_with(never_answers, never_answers) as (router, engines):
        await set_policy(router, first_token_limit_s=0.3)
        answer = await router.chat(headers={FIRST: "30"})
        assert (504, "first_token_timeout") == (answer.status_code, answer.json()["error"]["code"])
        assert [1, 1] == [len(e.exchanges) for e in engines]


async def test_a_stream_silent_for_longer_than_its_client_allows_goes_on_elsewhere() -> None:
    async with router_with(falls_silent, falls_silent) as (router, engines):
        engines[1].script = engines[0].script = _first_then(falls_silent, plays)
        assert SHOWN == (await router.chat(temperature=0, headers={BETWEEN: "0.4"})).content
        assert ["stalled", "ok"] == [a.code for a in router.records()[0].attempts]


async def test_a_stream_that_its_client_has_no_patience_for_anywhere_ends_honestly() -> None:
    async with router_with(falls_silent) as (router, engines):
        answer = await router.chat(temperature=0, headers={BETWEEN: "0.1"})
        assert (1, 0) == (answer.content.count(b'"code":"stalled"'), answer.content.count(b"[DONE]"))
        assert 3 == len(engines[0].exchanges)


async def test_clients_without_patience_cannot_eject_a_replica() -> None:
    async with router_with(never_answers) as (router, engines):
        for _ in range(6):
            await router.chat(headers={FIRST: "0.1"})
        assert 6 == len(engines[0].exchanges)
        asked = Shape(request_id="x", model=MODEL)
        candidates = router.app.dispatcher.explain(asked, now=asyncio.get_running_loop().time())
        assert [("", None)] == [(c.excluded, c.terms.get("health")) for c in candidates]


async def test_the_total_limit_of_a_request_ends_a_stream_that_still_runs() -> None:
    async with router_with(falls_silent) as (router, _):
        answer = await router.chat(headers={TOTAL: "0.3"})
        assert answer.content.startswith(ANSWER[0])
        assert b'"code":"total_timeout"' in answer.content
        assert ["total_timeout"] == [r.code for r in router.records()]


async def test_a_request_is_held_no_longer_than_its_client_would_wait() -> None:
    async with router_with() as (router, _):
        await set_policy(router)
        answer = await router.chat(headers={FIRST: "0.2"})
        assert (503, "no_replica") == (answer.status_code, answer.json()["error"]["code"])


@pytest.mark.parametrize("name", [FIRST, BETWEEN, TOTAL])
async def test_a_limit_that_is_no_time_is_a_400_that_says_so(name: str) -> None:
    async with router_with(plays) as (router, engines):
        answer = await router.chat(headers={name: "soon"})
        error = answer.json()["error"]
        assert (400, "invalid_request", name) == (answer.status_code, error["code"], error["param"])
        assert f"`{name}` must be a number of seconds" in error["message"]
        assert [] == engines[0].exchanges


async def test_a_generous_limit_changes_nothing() -> None:
    async with router_with(plays) as (router, _):
        limits = {FIRST: "9999999", BETWEEN: "9999999", TOTAL: "9999999.5"}
        assert SHOWN == (await router.chat(headers=limits)).content


def _first_then(first, then):  # type: ignore[no-untyped-def]
    """A script that plays `first` once and `then` ever after."""
    calls: list[int] = []

    async def script(exchange: Exchange) -> None:
        calls.append(1)
        await (first if len(calls) == 1 else then)(exchange)

    return script

"""Another model answers where policy names one, the client allows it and its own would have to be waited for."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from tests.router.harness import ANSWER, DONE, MODEL, WHOLE, Engine, Exchange, Router, plays, running_router, until
from wire.records import ModelPolicy, ModelState, Tenant

SHOWN = b"".join([*ANSWER[:3], DONE])
ALLOWED = {"x-switchyard-fallback": "1"}


@contextlib.asynccontextmanager
async def own_and_other(own_state: ModelState, **settings: object) -> AsyncIterator[tuple[Router, Engine, Engine]]:
    """A model with one replica in this state, and its substitute `small`, which is ready."""
    async with running_router(**settings) as router, Engine(plays) as own, Engine(plays) as other:
        policy = ModelPolicy(model=MODEL, fallback="small")
        await router.put(policy)
        await router.add_engine(own, name="own.0", state=own_state)
        await router.add_engine(other, name="other.0", model="small")
        await until(lambda: router.app.watch.view.fleet.models.get(MODEL) == policy)
        yield router, own, other


def asked_for(engine: Engine) -> list[str]:
    return [json.loads(exchange.body)["model"] for exchange in engine.exchanges]


async def test_a_client_that_allows_it_is_answered_by_the_substitute_and_told_so() -> None:
    async with own_and_other(ModelState.LOADING) as (router, own, other):
        for stream, body in ((True, SHOWN), (False, WHOLE)):
            answer = await router.chat(stream=stream, headers=ALLOWED | {"x-request-id": "told"})
            assert (200, body, "small") == (answer.status_code, answer.content, answer.headers["x-switchyard-model"])
        assert ([], ["small", "small"]) == (asked_for(own), asked_for(other))
        assert {(MODEL, "small")} == {(r.model, r.served_model) for r in router.records()}
        story = (await router.client.get("/admin/why/told")).text
        assert "first attempt on other.0" in story
        assert "instead of the model asked for: small" in story


async def test_nothing_but_the_model_is_changed_in_what_is_sent() -> None:
    async with own_and_other(ModelState.LOADING) as (router, _, other):
        await router.chat(stream=False, headers=ALLOWED, vllm_xargs={"a": [1, 2.50]}, seed=7)
        sent = json.loads(other.exchanges[0].body)
        assert {"model": "small", "stream": False, "seed": 7, "vllm_xargs": {"a": [1, 2.5]}} == {
            name: value for name, value in sent.items() if name != "messages"
        }


async def test_without_a_word_of_the_client_its_own_model_is_waited_for() -> None:
    async with own_and_other(ModelState.LOADING) as (router, own, other):
        async with asyncio.TaskGroup() as clients:
            asked = clients.create_task(router.chat())
            await until(lambda: router.app.news.waiting == 1)
            await router.add_engine(own, name="own.0")
        assert ([MODEL], []) == (asked_for(own), asked_for(other))
        assert "x-switchyard-model" not in asked.result().headers
        assert [""] == [r.served_model for r in router.records()]


async def test_a_tenant_gets_no_substitute_that_it_may_not_use() -> None:
    async with own_and_other(ModelState.LOADING) as (router, own, other):
        tenant = Tenant(tenant="acme", models=(MODEL,))
        await router.put(tenant)
        await until(lambda: router.app.watch.view.fleet.tenants["acme"] == tenant)
        async with asyncio.TaskGroup() as clients:
            clients.create_task(router.chat(headers=ALLOWED))
            await until(lambda: router.app.news.waiting == 1)
            await router.add_engine(own, name="own.0")
        assert ([MODEL], []) == (asked_for(own), asked_for(other))


async def test_a_model_that_is_ready_answers_itself() -> None:
    async with own_and_other(ModelState.READY) as (router, own, other):
        answer = await router.chat(headers=ALLOWED)
        assert ([MODEL], []) == (asked_for(own), asked_for(other))
        assert "x-switchyard-model" not in answer.headers


async def test_a_stream_of_the_substitute_goes_on_in_the_substitute_though_its_own_model_is_ready_by_then() -> None:
    legs: list[str] = []

    async def cuts_once(exchange: Exchange) -> None:
        legs.append(exchange.header("x-request-id"))
        if len(legs) > 1:
            await plays(exchange)
            return
        exchange.start_stream()
        await exchange.send(ANSWER[0])
        await until(lambda: ready.is_set())
        exchange.cut()

    ready = asyncio.Event()
    async with own_and_other(ModelState.LOADING) as (router, own, other), Engine(cuts_once) as third:
        other.script = cuts_once
        await router.add_engine(third, name="third.0", model="small")
        async with asyncio.TaskGroup() as clients:
            asked = clients.create_task(router.chat(temperature=0, headers=ALLOWED))
            await until(lambda: len(legs) == 1)
            await router.add_engine(own, name="own.0")
            ready.set()
        assert (SHOWN, []) == (asked.result().content, asked_for(own))
        assert {"small"} == {*asked_for(other), *asked_for(third)}
        (record,) = router.records()
        assert (["first", "resume"], "small") == ([a.kind for a in record.attempts], record.served_model)


async def test_under_pressure_the_substitute_answers_who_would_be_refused() -> None:
    opened = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await opened.wait()
        await plays(exchange)

    limits = {"admission_begin_s": 0.0001, "admission_wait_s": 0.0001}
    async with own_and_other(ModelState.READY, **limits) as (router, own, other):
        own.script = waits
        async with asyncio.TaskGroup() as clients:
            clients.create_task(router.chat())
            await until(lambda: len(own.exchanges) == 1)
            refused = await router.chat()
            assert (503, "overloaded") == (refused.status_code, refused.json()["error"]["code"])
            instead = await router.chat(headers=ALLOWED)
            assert (SHOWN, "small") == (instead.content, instead.headers["x-switchyard-model"])
            opened.set()
        assert ([MODEL], ["small"]) == (asked_for(own), asked_for(other))
        assert 0 == sum(router.counts().values())

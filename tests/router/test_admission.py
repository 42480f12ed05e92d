"""Requests under pressure, through the whole router on real sockets: who waits, who goes, who is told to come back.

A tenth of a millisecond of work ahead is pressure here: one request without its first token makes the next one wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator

import httpx

from tests.router.harness import (
    ANSWER,
    DONE,
    MODEL,
    Engine,
    Exchange,
    Router,
    plays,
    router_with,
    running_router,
    until,
)
from wire.records import AdmissionClass, ApiKey, ModelPolicy, ModelState, Tenant

SHOWN = b"".join([*ANSWER[:3], DONE])
PRESSED = {"admission_begin_s": 0.0001, "admission_wait_s": 20.0}
FIRST = "x-switchyard-first-token-limit-s"


class Doors:
    """An engine's script: each request is answered when the test lets it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._open = asyncio.Semaphore(0)
        self.clients: asyncio.TaskGroup

    async def __call__(self, exchange: Exchange) -> None:
        self.asked.append(exchange.header("x-request-id"))
        await self._open.acquire()
        await plays(exchange)

    def let(self, number: int = 1) -> None:
        for _ in range(number):
            self._open.release()


@contextlib.asynccontextmanager
async def pressed(**settings: object) -> AsyncIterator[tuple[Router, Doors]]:
    """A router, and one engine that has a request without a first token."""
    doors = Doors()
    async with router_with(doors, **(PRESSED | settings)) as (router, _):
        async with asyncio.TaskGroup() as doors.clients:
            first = doors.clients.create_task(ask(router, "first"))
            await until(lambda: doors.asked == ["first"])
            yield router, doors
            doors.let(1000)
        assert SHOWN == first.result().content
        await until(lambda: not sum(router.counts().values()))


async def ask(router: Router, name: str, key: str = "", **headers: str) -> httpx.Response:
    if key:
        headers["authorization"] = f"Bearer {key}"
    return await router.chat(headers={"x-request-id": name} | headers)


async def add_tenant(router: Router, **fields: object) -> str:
    """Its key."""
    tenant = Tenant(**fields)  # type: ignore[arg-type]
    key = f"sk-{tenant.tenant}"
    await router.put(tenant, ApiKey(sha256=hashlib.sha256(key.encode()).hexdigest(), tenant=tenant.tenant))
    await until(lambda: router.app.watch.view.fleet.tenants.get(tenant.tenant) == tenant)
    await until(lambda: any(k.tenant == tenant.tenant for k in router.app.watch.view.keys.values()))
    return key


def queued(router: Router, number: int) -> bool:
    return router.app.gate.waiting == number


async def a_moment() -> None:
    """The loop's clock counts milliseconds: who waited for less has not waited."""
    clock = asyncio.get_running_loop().time
    began = clock()
    while clock() < began + 0.002:
        await asyncio.sleep(0)


async def test_a_request_waits_in_the_router_until_the_one_before_has_its_first_token() -> None:
    async with pressed() as (router, doors):
        second = doors.clients.create_task(ask(router, "second"))
        await until(lambda: queued(router, 1))
        assert {MODEL: 1} == router.app.gate.lengths()
        assert ["first"] == doors.asked
        await a_moment()
        doors.let(2)
        assert SHOWN == (await second).content
        record = next(r for r in router.records() if r.request_id == "second")
        assert (True, 0.0) == (record.queue_wait_s > 0.0, record.held_s)
        metrics = (await router.client.get("/metrics")).text
        assert f'switchyard_queue_wait_seconds_count{{model="{MODEL}"}} 1.0' in metrics
        story = (await router.client.get("/admin/why/second")).text
        assert "s in the router, the model being under pressure" in story
        assert "not sent yet: 0.0 s of work is ahead in engines, so it waits in the router, behind 0 others" in story


async def test_without_a_request_ahead_nobody_waits_however_low_the_limit() -> None:
    async with router_with(plays, **PRESSED) as (router, _):
        for number in range(3):
            assert SHOWN == (await ask(router, f"r{number}")).content
        assert [0.0] * 3 == [r.queue_wait_s for r in router.records()]


async def test_a_request_that_cannot_be_in_time_is_refused_at_once_with_the_reason_the_limit_and_a_time() -> None:
    async with pressed() as (router, doors):
        answer = await ask(router, "late", **{FIRST: "0.006"})
        error = answer.json()["error"]
        assert (503, "overloaded", "overloaded_error") == (answer.status_code, error["code"], error["type"])
        assert "1" == answer.headers["retry-after"]
        assert "it may wait 0.00" in error["message"]
        assert "(x-switchyard-first-token-limit-s)" in error["message"]
        assert ["first"] == doors.asked
        story = (await router.client.get("/admin/why/late")).text
        assert "not sent: a first token is expected only in" in story
        metrics = (await router.client.get("/metrics")).text
        assert f'switchyard_refused_under_pressure_total{{model="{MODEL}",reason="late"}} 1.0' in metrics


async def test_a_request_whose_turn_does_not_come_in_time_is_refused_by_the_sweep() -> None:
    async with pressed(admission_wait_s=0.1) as (router, doors):
        answer = await ask(router, "waits")
        assert (503, "queue_timeout") == (answer.status_code, answer.json()["error"]["code"])
        assert "and may wait 0.1 s (admission_wait_s)" in answer.json()["error"]["message"]
        assert ["first"] == doors.asked


async def test_the_queue_is_bounded_and_says_so() -> None:
    async with pressed(admission_queue=2) as (router, doors):
        waiting = [doors.clients.create_task(ask(router, f"w{n}")) for n in range(2)]
        await until(lambda: queued(router, 2))
        answer = await ask(router, "third")
        assert (429, "rate_limit_exceeded") == (answer.status_code, answer.json()["error"]["code"])
        said = "2 of the tenant's requests wait for the model already, of 2 in all (admission_queue)"
        assert said in answer.json()["error"]["message"]
        assert 1 <= int(answer.headers["retry-after"])
        doors.let(3)
        assert [SHOWN, SHOWN] == [(await one).content for one in waiting]


async def test_a_client_that_leaves_the_queue_is_never_sent_and_frees_its_place() -> None:
    async with pressed(admission_queue=1) as (router, doors):
        leaver = doors.clients.create_task(ask(router, "leaver"))
        await until(lambda: queued(router, 1))
        await a_moment()
        leaver.cancel()
        await until(lambda: queued(router, 0))
        stayer = doors.clients.create_task(ask(router, "stayer"))
        await until(lambda: queued(router, 1))
        doors.let(2)
        assert SHOWN == (await stayer).content
        assert ["first", "stayer"] == doors.asked
        left = next(r for r in router.records() if r.request_id == "leaver")
        assert ("client_gone", [], True) == (left.code, left.attempts, left.queue_wait_s > 0.0)


async def test_a_higher_priority_passes_those_that_wait() -> None:
    async with pressed() as (router, doors):
        key = await add_tenant(router, tenant="vip", priority=2)
        low = doors.clients.create_task(ask(router, "low"))
        await until(lambda: queued(router, 1))
        high = doors.clients.create_task(ask(router, "high", key))
        await until(lambda: queued(router, 2))
        doors.let(3)
        assert [SHOWN, SHOWN] == [(await one).content for one in (low, high)]
        assert ["first", "high", "low"] == doors.asked


async def test_a_tenant_with_many_waiting_does_not_make_another_wait_for_all_of_them() -> None:
    async with pressed() as (router, doors):
        key = await add_tenant(router, tenant="small")
        crowd = [doors.clients.create_task(ask(router, f"crowd{n}")) for n in range(20)]
        await until(lambda: queued(router, 20))
        small = [doors.clients.create_task(ask(router, f"small{n}", key)) for n in range(3)]
        await until(lambda: queued(router, 23))
        doors.let(24)
        await asyncio.gather(*crowd, *small)
        places = [doors.asked.index(f"small{n}") for n in range(3)]
        assert max(places) < 20


async def test_requests_go_one_after_the_other_so_that_each_sees_those_before_it() -> None:
    async with pressed() as (router, doors):
        waiting = [doors.clients.create_task(ask(router, f"w{n}")) for n in range(5)]
        await until(lambda: queued(router, 5))
        for number in range(2, 7):
            doors.let()
            await until(lambda number=number: len(doors.asked) == number)  # type: ignore[misc]
            assert 6 - number == router.app.gate.waiting
        doors.let()
        await asyncio.gather(*waiting)


async def test_a_model_whose_policy_says_none_is_never_held_back() -> None:
    async with pressed() as (router, doors):
        policy = ModelPolicy(model=MODEL, admission=AdmissionClass.NONE)
        await router.put(policy)
        await until(lambda: router.app.watch.view.fleet.models.get(MODEL) == policy)
        second = doors.clients.create_task(ask(router, "second"))
        await until(lambda: doors.asked == ["first", "second"])
        doors.let(2)
        assert SHOWN == (await second).content


async def test_a_limit_of_zero_lets_everything_through() -> None:
    async with pressed(admission_begin_s=0.0) as (router, doors):
        second = doors.clients.create_task(ask(router, "second", **{FIRST: "20"}))
        await until(lambda: doors.asked == ["first", "second"])
        doors.let(2)
        assert SHOWN == (await second).content


async def test_a_router_that_leaves_serves_who_waits_and_sends_the_rest_elsewhere_when_its_limit_is_over() -> None:
    doors = Doors()
    async with asyncio.TaskGroup() as group:
        async with router_with(doors, drain_limit_s=0.3, **PRESSED) as (router, _):
            first = group.create_task(ask(router, "first"))
            await until(lambda: doors.asked == ["first"])
            waiting = [group.create_task(ask(router, f"w{n}")) for n in range(2)]
            await until(lambda: queued(router, 2))
            router.app.shutdown.ask()
            doors.let(1)
            await until(lambda: len(doors.asked) == 2)
            answers = await asyncio.gather(first, *waiting)
        assert SHOWN == first.result().content
        assert {200, 503} >= {answer.status_code for answer in answers}
        sent_away = [a for a in answers if a.status_code == 503 and b"still waited" in a.content]
        assert 1 == len(sent_away)
        assert ("draining", "1") == (sent_away[0].json()["error"]["code"], sent_away[0].headers["retry-after"])


async def test_requests_held_for_a_load_are_bounded_too_and_queue_when_it_is_done() -> None:
    doors = Doors()
    async with running_router(admission_queue=2, **PRESSED) as router, Engine(doors) as engine:
        loading = await router.add_engine(engine, state=ModelState.LOADING)
        async with asyncio.TaskGroup() as clients:
            held = [clients.create_task(ask(router, f"h{n}")) for n in range(2)]
            await until(lambda: router.app.news.waiting == 2)
            answer = await ask(router, "third")
            assert (503, "overloaded") == (answer.status_code, answer.json()["error"]["code"])
            assert "2 requests wait for this model to be ready already" in answer.json()["error"]["message"]
            await router.add_engine(engine, name=loading.replica, state=ModelState.READY)
            await until(lambda: queued(router, 1))
            await until(lambda: len(doors.asked) == 1)
            await a_moment()
            doors.let(2)
        assert [SHOWN, SHOWN] == [one.result().content for one in held]
        waits = sorted((r.held_s > 0.0, r.queue_wait_s > 0.0) for r in router.records() if r.attempts)
        assert [(True, False), (True, True)] == waits
        assert 0 == sum(router.counts().values())

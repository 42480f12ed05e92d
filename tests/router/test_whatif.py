"""The admin page that replays decisions, through the whole router."""

from __future__ import annotations

import hashlib

import pytest

from tests.router.harness import plays, router_with, until
from wire.records import ApiKey, Tenant


async def test_whatif_replays_the_tenants_own_decisions_and_nobody_elses() -> None:
    async with router_with(plays, plays) as (router, _):
        for _ in range(4):
            await router.chat()
        own = (await router.client.get("/admin/whatif", params={"policy": "round_robin"})).json()
        assert 4 == own["decisions"]
        assert {"decisions", "changed", "expected_ms", "instead_ms", "examples"} == own.keys()
        same = (await router.client.get("/admin/whatif")).json()
        assert (4, 0) == (same["decisions"], same["changed"])
        key = "sk-other"
        await router.put(Tenant(tenant="o"), ApiKey(sha256=hashlib.sha256(key.encode()).hexdigest(), tenant="o"))
        await until(lambda: "o" in router.app.watch.view.fleet.tenants and len(router.app.watch.view.keys) == 2)
        headers = {"authorization": f"Bearer {key}"}
        assert 0 == (await router.client.get("/admin/whatif", headers=headers)).json()["decisions"]
        stranger = await router.client.get("/admin/whatif", headers={"authorization": "Bearer x"})
        assert 401 == stranger.status_code


@pytest.mark.parametrize(
    ("query", "said"),
    [("policy=best", "there is no policy 'best'"), ("set=tie_ms", "tie_ms: '' will not do"), ("set=x=1", "cannot be")],
)
async def test_a_question_that_makes_no_sense_is_a_400_that_says_what_there_is(query: str, said: str) -> None:
    async with router_with(plays) as (router, _):
        answer = await router.client.get(f"/admin/whatif?{query}")
        assert 400 == answer.status_code
        assert said in answer.json()["error"]["message"]

"""The sixteen faults that failover benchmarks use, each with its outcome. `python -m loadtest.scenarios` is the table.

Two scripted engines behind a router of this process; loadtest/scenarios.py says what each fault is and what a client
should have of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from loadtest.client import Client
from loadtest.scenarios import BY_NAME, Stage, Told, Verdict, play
from loadtest.scripted import MODEL, engines
from tests.router.harness import KEY, Router, running_router

PASS = Told(Verdict.PASS)
Met = set[tuple[str, ...]]
"""Codes of the attempts of a request, over all requests of a scene."""


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[tuple[Stage, Router]]:
    async with engines() as (made, director), running_router(connect_limit_s=0.3) as router:
        for engine in made:
            await router.add_engine(engine, model=MODEL)  # type: ignore[arg-type]  # it has what is asked of one
        client = Client("127.0.0.1", router.port, api_key=KEY)
        try:
            yield Stage(made, director, client), router
        finally:
            client.close()


async def outcome(name: str) -> tuple[Told, Met]:
    async with stage() as (on, router):
        told = await play(BY_NAME[name], on)
        assert 0 == sum(router.counts().values())
        return told, {tuple(attempt.code for attempt in record.attempts) for record in router.records()}


async def test_429_with_retry_after_goes_to_another_engine_at_once() -> None:
    told, met = await outcome("429 with Retry-After")
    assert PASS == told
    assert met <= {("ok",), ("engine_busy", "ok")}


async def test_a_500_goes_to_another_engine() -> None:
    assert (PASS, {("engine_error", "ok")}) == await outcome("500")


async def test_a_503_goes_to_another_engine() -> None:
    told, met = await outcome("503")
    assert PASS == told
    assert ("engine_busy", "ok") in met


async def test_a_refused_connection_goes_to_another_engine() -> None:
    told, met = await outcome("connect refused")
    assert PASS == told
    assert met <= {("ok",), ("engine_unreachable", "ok")}


async def test_a_connection_that_is_not_answered_goes_to_another_engine() -> None:
    told, met = await outcome("connect timeout")
    assert PASS == told
    assert met <= {("ok",), ("engine_unreachable", "ok")}


async def test_a_slow_first_token_is_waited_for() -> None:
    assert (PASS, {("ok",)}) == await outcome("slow first token")


async def test_a_stream_cut_in_the_middle_goes_on_elsewhere() -> None:
    assert (PASS, {("engine_broke", "ok")}) == await outcome("cut mid-stream")


async def test_a_stream_that_stalls_goes_on_elsewhere() -> None:
    assert (PASS, {("stalled", "ok")}) == await outcome("stall")


async def test_a_malformed_event_never_reaches_the_client_and_the_stream_goes_on_elsewhere() -> None:
    assert (PASS, {("engine_malformed", "ok")}) == await outcome("malformed event")


async def test_an_error_within_the_stream_is_no_end_although_done_follows() -> None:
    assert (PASS, {("engine_error", "ok")}) == await outcome("in-band error")


async def test_an_empty_stream_is_no_answer() -> None:
    assert (PASS, {("engine_broke", "ok")}) == await outcome("empty stream")


async def test_a_stream_that_lost_only_its_done_is_complete_and_asked_of_nobody_else() -> None:
    assert (PASS, {("ok",)}) == await outcome("missing [DONE]")


async def test_a_prompt_that_is_too_long_is_the_clients_own_error_and_tried_once() -> None:
    assert (PASS, {("engine_rejected",)}) == await outcome("context-length 400")


async def test_an_answer_that_a_content_filter_ended_is_an_answer() -> None:
    assert (PASS, {("ok",)}) == await outcome("content filter")


async def test_where_nobody_will_continue_the_client_gets_an_error_event_and_no_done() -> None:
    told, met = await outcome("fallback refusing continuation")
    assert PASS == told
    assert met <= {("engine_broke", "engine_rejected"), ("engine_broke", "engine_rejected", "ok")}


async def test_an_engine_that_fails_every_second_time_costs_no_client_anything() -> None:
    told, met = await outcome("flapping primary")
    assert PASS == told
    assert {codes[-1] for codes in met} == {"ok"}

"""The cheapest engine: its stream is vLLM's, paced, stamped, and over when nobody reads."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import msgspec
import pytest

from loadtest.client import Client, Recorder
from tests.loadtest.server import engine as serving_engine

BODY = {"model": "bench", "messages": [], "max_tokens": 4, "stream": True}
LIMIT_S = 20.0


@pytest.fixture
async def engine() -> AsyncIterator[Client]:
    async with serving_engine() as client:
        yield client


async def _running(client: Client) -> int:
    return int((await client.get("/metrics")).text().split()[-1])


async def test_a_stream_has_its_tokens_its_end_and_a_stamp_in_each(engine: Client) -> None:
    recorder = Recorder()
    exchange = await engine.fetch(engine.encode("/v1/chat/completions", BODY), recorder=recorder)
    events = [line[6:] for line in exchange.text().split(b"\n\n") if line]
    reasons = [msgspec.json.decode(event)["choices"][0]["finish_reason"] for event in events[:-1]]
    assert exchange.complete
    assert [None, None, None, "length"] == reasons
    assert 4 == len(recorder.delay_s)


async def test_usage_comes_last_when_it_is_asked_for(engine: Client) -> None:
    body = {**BODY, "stream_options": {"include_usage": True}}
    exchange = await engine.fetch(engine.encode("/v1/chat/completions", body))
    usage = msgspec.json.decode(exchange.text().split(b"\n\n")[-3][6:])
    assert [] == usage["choices"]
    assert 4 == usage["usage"]["completion_tokens"]


async def test_a_whole_answer_tells_its_tokens(engine: Client) -> None:
    exchange = await engine.fetch(engine.encode("/v1/chat/completions", {**BODY, "stream": False}))
    assert 4 == msgspec.json.decode(exchange.text())["usage"]["completion_tokens"]
    assert 0 == await _running(engine)


async def test_a_stream_ends_when_its_reader_has_gone(engine: Client) -> None:
    exchange = await engine.open(engine.encode("/v1/chat/completions", {**BODY, "max_tokens": 1_000_000}))
    await exchange.reached(3)
    assert 1 == await _running(engine)
    exchange.abort()
    async with asyncio.timeout(LIMIT_S):
        while await _running(engine):
            await asyncio.sleep(0.01)


async def test_without_a_pace_it_writes_as_fast_as_it_is_read(engine: Client) -> None:
    await engine.post("/pace", {"interval_s": 0})
    exchange = await engine.fetch(engine.encode("/v1/chat/completions", {**BODY, "max_tokens": 5000}), keep=False)
    assert exchange.complete
    assert 5001 == exchange.events


async def test_an_unknown_path_is_not_found(engine: Client) -> None:
    exchange = await engine.get("/get_server_info")
    assert 404 == exchange.status
    assert re.search(rb"Not Found", exchange.text())

"""The measuring client: what it counts, and what it must never take for an answer."""

from __future__ import annotations

import asyncio
import time

import pytest

from loadtest.client import Client, Recorder
from tests.loadtest.server import END, HEAD, chunk, serving

EVENT = b'data: {"choices":[]}\n\n'
DONE = b"data: [DONE]\n\n"
LIMIT_S = 20.0


async def test_a_stream_is_complete_with_done_and_a_whole_message() -> None:
    async with serving([HEAD + chunk(EVENT) + chunk(EVENT), chunk(DONE) + END]) as client:
        exchange = await client.fetch(client.encode("/x", {}))
    assert exchange.complete
    assert (200, 3, EVENT + EVENT + DONE) == (exchange.status, exchange.events, exchange.text())


@pytest.mark.parametrize("cut", range(1, len(EVENT) + len(EVENT)))
async def test_events_are_counted_once_wherever_the_bytes_are_cut(cut: int) -> None:
    both = EVENT + EVENT
    async with serving([HEAD + chunk(both[:cut]), chunk(both[cut:]) + chunk(DONE) + END]) as client:
        exchange = await client.fetch(client.encode("/x", {}))
    assert 3 == exchange.events
    assert exchange.complete


async def test_a_message_that_ends_without_done_is_not_complete() -> None:
    async with serving([HEAD + chunk(EVENT) + END]) as client:
        exchange = await client.fetch(client.encode("/x", {}))
    assert exchange.finished
    assert not exchange.complete


async def test_a_connection_that_breaks_in_mid_stream_is_an_error() -> None:
    async with serving([HEAD + chunk(EVENT), b""]) as client:
        exchange = await client.fetch(client.encode("/x", {}))
    assert not exchange.finished
    assert "connection lost" in exchange.error
    assert 1 == exchange.events


async def test_a_comment_is_no_first_event() -> None:
    async with serving([HEAD + chunk(b": keep-alive\n\n"), chunk(EVENT), chunk(DONE) + END]) as client:
        recorder = Recorder()
        exchange = await client.fetch(client.encode("/x", {}), recorder=recorder)
    assert 2 == exchange.events
    assert 1 == len(recorder.first_event_s)


async def test_the_delay_of_an_event_is_read_from_its_stamp() -> None:
    sent = time.monotonic_ns() - 1_000_000_000
    event = b'data: {"content":"@%019d"}\n\n' % sent
    async with serving([HEAD + chunk(event) + chunk(DONE) + END]) as client:
        recorder = Recorder()
        await client.fetch(client.encode("/x", {}), recorder=recorder)
    assert 1 == len(recorder.delay_s)
    assert recorder.delay_s[0] >= 1.0


async def test_connections_are_kept_and_used_again() -> None:
    answer = [HEAD + chunk(DONE) + END]
    async with serving(answer, answer) as client:
        first = await client.fetch(client.encode("/x", {}))
        second = await client.fetch(client.encode("/x", {}))
    assert first.complete
    assert second.complete


async def test_a_request_on_a_connection_that_the_server_had_closed_is_sent_again() -> None:
    seen: list[bytes] = []
    async with serving([HEAD + chunk(DONE) + END], [b""], seen=seen) as client:
        await client.fetch(client.encode("/first", {}))
        again = await client.fetch(client.encode("/second", {}))
    assert again.complete
    assert [b"POST /first", b"POST /second", b"POST /second"] == [one[: one.index(b" HTTP")] for one in seen]


async def test_a_refused_connection_ends_the_exchange() -> None:
    async with serving() as client:
        gone = Client("127.0.0.1", client.port)
    exchange = await gone.open(gone.encode("/x", {}))
    assert "cannot connect" in exchange.error
    assert 0 == exchange.status


async def test_an_aborted_exchange_ends_and_frees_who_waits_for_events() -> None:
    async with serving([HEAD + chunk(EVENT)]) as client, asyncio.timeout(LIMIT_S):
        exchange = await client.open(client.encode("/x", {}))
        assert await exchange.reached(1)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(exchange.reached(2))
            await asyncio.sleep(0)
            exchange.abort()
        assert not waiting.result()
        assert "aborted" == exchange.error


async def test_cancelling_a_fetch_leaves_no_request_running() -> None:
    async with serving([HEAD + chunk(EVENT)], [HEAD + chunk(DONE) + END]) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.fetch(client.encode("/x", {}))
        again = await client.open(client.encode("/x", {}), keep=True)
        await again.reached(1)
        assert EVENT == again.text(), "the aborted connection must not be used again"


def test_a_request_carries_the_key_and_its_length() -> None:
    client = Client("127.0.0.1", 80, api_key="sk-1")
    request = client.encode("/v1/x", {"a": 1}, headers={"x-request-id": "r"})
    assert request.startswith(b"POST /v1/x HTTP/1.1\r\nhost: 127.0.0.1:80\r\nauthorization: Bearer sk-1\r\n")
    assert request.endswith(b'content-length: 7\r\nx-request-id: r\r\n\r\n{"a":1}')

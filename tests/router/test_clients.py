"""Clients that leave, read slowly, or send in odd ways; and what is still counted afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import msgspec
import pytest

from tests.router.harness import (
    ANSWER,
    DONE,
    KEY,
    WHOLE,
    Exchange,
    Router,
    Script,
    chat_body,
    chat_event,
    plays,
    router_with,
    until,
)
from wire.records import ModelState

SHOWN = b"".join([*ANSWER[:3], DONE])


async def never_answers(exchange: Exchange) -> None:
    await exchange.client_left()


async def streams_for_ever(exchange: Exchange) -> None:
    exchange.start_stream()
    with contextlib.suppress(ConnectionError):
        while True:
            await exchange.send(chat_event("again"))
            await asyncio.sleep(0.001)


def request_bytes(*, stream: bool = True, keep: bool = False, **more: object) -> bytes:
    body = json.dumps({**chat_body(stream=stream), **more}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"{'' if keep else 'connection: close' + chr(13) + chr(10)}\r\n"
    )
    return head.encode() + body


async def connect(router: Router) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", router.port)


async def settled(router: Router) -> None:
    await until(lambda: sum(router.counts().values()) == 0)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_that_leaves_while_it_waits_for_the_first_byte_cancels_the_engine_at_once(stream: bool) -> None:
    async with router_with(never_answers) as (router, engines):
        _, writer = await connect(router)
        writer.write(request_bytes(stream=stream))
        await until(lambda: len(engines[0].exchanges) == 1)
        writer.close()
        await until(lambda: engines[0].open == 0)
        await settled(router)
        (record,) = router.records()
        assert ("client_gone", ["client_gone"]) == (record.code, [a.code for a in record.attempts])
        assert record.attempts[0].duration_s > 0.0


async def test_a_client_that_leaves_in_the_middle_of_a_stream_cancels_the_engine_at_once() -> None:
    async with router_with(streams_for_ever) as (router, engines):
        reader, writer = await connect(router)
        writer.write(request_bytes())
        await reader.readuntil(b"again")
        writer.transport.abort()
        await until(lambda: engines[0].open == 0)
        await settled(router)
        record = router.records()[0]
        assert ("client_gone", True) == (record.code, record.output_tokens > 0)


async def test_a_client_that_leaves_while_its_request_is_held_is_forgotten() -> None:
    async with router_with(plays) as (router, engines):
        await router.add_engine(engines[0], name="cold.0", model="cold", state=ModelState.LOADING)
        _, writer = await connect(router)
        body = json.dumps({**chat_body(), "model": "cold"}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await until(lambda: router.app.news.waiting == 1)
        writer.close()
        await settled(router)
        assert [] == engines[0].exchanges


async def test_a_client_that_leaves_while_sending_its_body_is_forgotten() -> None:
    async with router_with(plays) as (router, engines):
        _, writer = await connect(router)
        writer.write(request_bytes()[:-10])
        await until(lambda: router.app.instruments.open_calls == 1)
        writer.close()
        await settled(router)
        assert (["client_gone"], []) == ([r.code for r in router.records()], engines[0].exchanges)


async def test_a_slow_reader_stops_the_engine_and_does_not_fill_the_router() -> None:
    sent = 0
    part = chat_event("x" * 1000)

    async def floods(exchange: Exchange) -> None:
        nonlocal sent
        exchange.start_stream()
        with contextlib.suppress(ConnectionError):
            for _ in range(100_000):
                await exchange.send(part)
                sent += len(part)

    async with router_with(floods) as (router, _):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", router.port))
            client.sendall(request_bytes())
            held = -1
            while held != sent:  # the engine has come to a stand
                held = sent
                await asyncio.sleep(0.3)
            # Kernel buffers of two connections lie between; far less than the 100 MB the engine would send.
            assert 16_000_000 > held
            buffered = [p.transport.get_write_buffer_size() for p in router.app.server.protocols]
            assert 1_000_000 > sum(buffered)
        await settled(router)


async def test_a_stream_that_moves_while_its_client_reads_nothing_goes_on_at_the_clients_pace() -> None:
    part = chat_event("x" * 1000)
    sent = [0, 0]

    def floods(which: int) -> Script:
        async def script(exchange: Exchange) -> None:
            exchange.start_stream()
            with contextlib.suppress(ConnectionError):
                for _ in range(100_000):
                    await exchange.send(part)
                    sent[which] += len(part)

        return script

    async def comes_to_a_stand(which: int) -> None:
        held = -1
        while held != sent[which] or not held:
            held = sent[which]
            await asyncio.sleep(0.3)

    async with router_with(floods(0), floods(1)) as (router, engines):
        first, second = router.app.watch.view.fleet.replicas.values()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", router.port))
            client.sendall(request_bytes(temperature=0))
            await until(lambda: bool(engines[0].exchanges or engines[1].exchanges))
            went_to = 0 if engines[0].exchanges else 1
            await comes_to_a_stand(went_to)
            left = (first, second)[went_to]
            await router.put(msgspec.structs.replace(left, state=ModelState.DRAINING, moving=True))
            await until(lambda: len(engines[1 - went_to].exchanges) == 1)
            await comes_to_a_stand(1 - went_to)
            assert 2 * 16_000_000 > sent[1 - went_to]
            buffered = [p.transport.get_write_buffer_size() for p in router.app.server.protocols]
            assert 1_000_000 > sum(buffered)
        await settled(router)


async def test_a_client_too_slow_for_its_answers_end_does_not_stop_the_next_one_on_that_engines_connection() -> None:
    large = b'{"x":"' + b"x" * 16_000_000 + b'"}'

    async def answers(exchange: Exchange) -> None:
        await exchange.answer(200, large if len(engines[0].exchanges) == 1 else WHOLE)

    async with router_with(answers) as (router, engines):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", router.port))
            client.sendall(request_bytes(stream=False))
            await until(lambda: router.app.pool.idle_count == 1)
            assert WHOLE == (await router.chat(stream=False)).content
        assert (1, 2) == (engines[0].connections, len(engines[0].exchanges))


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with router_with(plays) as (router, engines):
        reader, writer = await connect(router)
        writer.write(request_bytes(keep=True) + request_bytes())
        got = await asyncio.wait_for(reader.read(-1), 10)
        assert 2 == got.count(b"[DONE]")
        assert 2 == len(engines[0].exchanges)
        writer.close()
        await settled(router)


async def test_a_request_may_come_in_pieces_while_the_one_before_streams_on_the_same_connection() -> None:
    async def streams_slowly(exchange: Exchange) -> None:
        exchange.start_stream()
        for event in ANSWER:
            await exchange.send(event)
            await asyncio.sleep(0.2)
        exchange.writer.write(b"0\r\n\r\n")

    async with router_with(streams_slowly) as (router, engines):
        reader, writer = await connect(router)
        writer.write(request_bytes(keep=True))
        behind = request_bytes()
        for part in (behind[:5], behind[5:40], behind[40:150], behind[150:]):
            await asyncio.sleep(0.3)  # sweeps look at the connection in between
            writer.write(part)
        got = await asyncio.wait_for(reader.read(-1), 10)
        assert 2 == got.count(b"[DONE]")
        assert 2 == len(engines[0].exchanges)
        writer.close()
        await settled(router)


async def test_a_client_of_http_1_0_gets_its_stream_without_chunks_until_the_connection_closes() -> None:
    async with router_with(plays) as (router, _):
        reader, writer = await connect(router)
        writer.write(request_bytes().replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, body = (await asyncio.wait_for(reader.read(-1), 10)).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert SHOWN == body
        writer.close()


async def test_a_head_that_never_ends_is_refused() -> None:
    async with router_with(plays) as (router, _):
        reader, writer = await connect(router)
        writer.write(b"GET /health HTTP/1.1\r\n" + b"".join(b"x-%d: %b\r\n" % (n, b"y" * 500) for n in range(80)))
        got = await asyncio.wait_for(reader.read(-1), 10)
        assert got.startswith(b"HTTP/1.1 431 ")
        writer.close()


async def test_what_is_no_http_gets_a_400_in_openais_shape() -> None:
    async with router_with(plays) as (router, _):
        reader, writer = await connect(router)
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        got = await asyncio.wait_for(reader.read(-1), 10)
        assert got.startswith(b"HTTP/1.1 400 ")
        assert b'{"error":{"message":' in got
        writer.close()


async def test_a_client_that_takes_too_long_to_send_its_request_is_told_so() -> None:
    async with router_with(plays) as (router, _):
        reader, writer = await connect(router)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-le")
        await until(lambda: any(p.head_bytes for p in router.app.server.protocols))
        protocol = next(iter(router.app.server.protocols))
        assert protocol.overdue(protocol.read_deadline + 1)
        assert (await asyncio.wait_for(reader.read(-1), 10)).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_connections_over_the_limit_are_refused_with_a_reason() -> None:
    async with router_with(plays, connections_limit=2) as (router, _):
        opened = [await connect(router) for _ in range(2)]
        await until(lambda: len(router.app.server.protocols) == 2)
        reader, writer = await connect(router)
        got = await asyncio.wait_for(reader.read(-1), 10)
        assert got.startswith(b"HTTP/1.1 503 ")
        for _, open_writer in [*opened, (reader, writer)]:
            open_writer.close()

"""Connections whose other end is silently gone. For packets that are really lost: `python -m loadtest.faults`."""

from __future__ import annotations

import asyncio
import socket

import msgspec

from router.core.errors import Code
from router.upstream.pool import LOSS_LIMIT_S, EnginePool
from tests.router.harness import KEY, Engine, Exchange, chat_body, chat_event, plays, router_with, until


async def endless(exchange: Exchange) -> None:
    exchange.start_stream()
    while True:
        await exchange.send(chat_event("x" * 10_000))


async def test_a_client_that_stops_reading_and_never_closes_is_given_up_and_its_engine_freed() -> None:
    async with router_with(endless, client_loss_limit_s=2.0) as (router, engines):
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await asyncio.get_running_loop().sock_connect(deaf, ("127.0.0.1", router.port))
            body = msgspec.json.encode(chat_body())
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
            await asyncio.get_running_loop().sock_sendall(deaf, request)
            await until(lambda: router.counts()["in flight"] == 1)
            await until(lambda: not any(router.counts().values()), limit_s=30.0)
            await until(lambda: engines[0].open == 0)
        assert [Code.CLIENT_GONE] == [record.code for record in router.records()]


async def test_connections_to_clients_and_engines_notice_a_host_that_is_gone() -> None:
    async with router_with(plays, client_loss_limit_s=8.0) as (router, _):
        await router.chat()
        (client,) = router.app.server.protocols
        assert (1, 2, 3, 2, 8000) == options(client.transport.get_extra_info("socket"))
    async with Engine(plays) as engine:
        pool = EnginePool()
        connection = await pool.connect(engine.address)
        assert connection._transport is not None
        raw = connection._transport.get_extra_info("socket")
        assert (1, 2, 3, 2, 1000 * LOSS_LIMIT_S) == options(raw)
        connection.abort()


def options(raw: socket.socket) -> tuple[int, ...]:
    """Probes on or off, seconds before and between them, how many, milliseconds that data may be unacknowledged."""
    tcp = (socket.TCP_KEEPIDLE, socket.TCP_KEEPCNT, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
    on = raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return (on, *(raw.getsockopt(socket.IPPROTO_TCP, option) for option in tcp))

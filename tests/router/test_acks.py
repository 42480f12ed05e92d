"""Reading a stream costs an acknowledgement for two events, where the kernel can be told so."""

from __future__ import annotations

import asyncio
import socket

import pytest

from router.upstream.acks import acknowledge_late
from tests.router.harness import Router, router_with, until
from tests.router.test_clients import connect, request_bytes, streams_for_ever

QUICKACK = getattr(socket, "TCP_QUICKACK", None)
pytestmark = pytest.mark.skipif(QUICKACK is None, reason="only Linux can be told")


def quick(raw: socket.socket) -> int:
    assert QUICKACK is not None
    return raw.getsockopt(socket.IPPROTO_TCP, QUICKACK)


async def acknowledged_late(router: Router) -> bool:
    reader, writer = await connect(router)
    writer.write(request_bytes())
    await reader.readuntil(b"again")
    (connection,) = router.app.pool._busy
    late = quick(connection._transport.get_extra_info("socket")) == 0
    writer.transport.abort()
    await until(lambda: not router.app.pool._busy)
    return late


async def test_a_connection_on_which_an_engine_streams_is_acknowledged_late() -> None:
    async with router_with(streams_for_ever) as (router, _):
        # Where events come more than 40 ms apart the kernel forgets it, and a busy machine makes such gaps.
        assert True in [await acknowledged_late(router) for _ in range(10)]


async def test_what_is_no_tcp_connection_is_left_as_it_is() -> None:
    one, other = socket.socketpair()
    with other:
        _, writer = await asyncio.open_connection(sock=one)
        acknowledge_late(writer.transport)
        writer.write(b"x")
        assert b"x" == await asyncio.to_thread(other.recv, 1)
        writer.close()

"""When this host has no file descriptor left: nobody else is blamed, what runs goes on, and then all is as before."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from router.core.errors import Code
from router.descriptors import clients, raise_limit
from router.upstream.pool import ConnectFailed, EnginePool
from tests.router.harness import ANSWER, Engine, Exchange, plays, router_with, until


@contextlib.contextmanager
def left(count: int) -> Iterator[None]:
    """This process may open so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(count + 1)]
    for descriptor in free:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("wanted", "descriptors", "share"),
    [(20_000, 65_536, 20_000), (20_000, 1024, 384), (20_000, 64, 24), (10, 1024, 10), (20_000, 1, 1)],
)
def test_clients_share_leaves_a_descriptor_for_the_engine_of_each_and_a_reserve(
    wanted: int, descriptors: int, share: int
) -> None:
    assert share == clients(wanted, descriptors=descriptors)


def test_the_limit_becomes_what_this_user_may_have() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        assert hard == raise_limit()
        assert (hard, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_idle_connections_make_room_for_one_that_is_needed() -> None:
    async with Engine(plays) as engine:
        pool = EnginePool()
        pool.release(await pool.connect(engine.address))
        await until(lambda: engine.connections == 1)
        with socket.create_server(("127.0.0.1", 0)) as other:  # accepts nothing: that would need a descriptor too
            with left(0):
                connection = await pool.connect(f"127.0.0.1:{other.getsockname()[1]}")
            assert connection.open
            assert 0 == pool.idle_count
            pool.release(connection)
            pool.close()


async def test_an_engine_that_could_not_be_asked_for_want_of_a_descriptor_is_not_to_blame() -> None:
    async with Engine(plays) as engine:
        pool = EnginePool()
        with left(0), pytest.raises(ConnectFailed) as failed:
            await pool.connect(engine.address)
        assert failed.value.ours
    with pytest.raises(ConnectFailed) as failed:
        await pool.connect(engine.address)
    assert not failed.value.ours


async def test_out_of_descriptors_streams_run_on_and_new_requests_are_told_honestly_until_it_is_over() -> None:
    go_on = asyncio.Event()

    async def holds(exchange: Exchange) -> None:
        exchange.start_stream()
        await exchange.send(ANSWER[0])
        await go_on.wait()
        for event in ANSWER[1:]:
            await exchange.send(event)
        exchange.writer.write(b"0\r\n\r\n")

    async with router_with(holds) as (router, engines):
        warm = await router.client.get("/health")  # a connection that is there already
        async with asyncio.TaskGroup() as group:
            stream = group.create_task(router.chat())
            await until(lambda: len(engines[0].exchanges) == 1)
            await router.client.get("/health")
            with left(0):
                refused = await router.chat(stream=False)
                go_on.set()
                whole = await stream
            served = await router.chat()
        await until(lambda: not any(router.counts().values()))
        assert 200 == warm.status_code
        assert (503, "overloaded", "1") == (
            refused.status_code,
            refused.json()["error"]["code"],
            refused.headers["retry-after"],
        )
        assert whole.text.endswith("data: [DONE]\n\n")
        assert served.text.endswith("data: [DONE]\n\n")
        assert [Code.OVERLOADED, Code.OK, Code.OK] == [record.code for record in router.records()]

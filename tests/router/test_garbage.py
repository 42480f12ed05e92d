"""Nothing of a request waits for a collection of cycles, and collections wait for quiet."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from router.garbage import INTERVAL_S, LIMIT_S, QUIET_CALLS, Garbage
from tests.router.harness import plays, router_with, until
from tests.router.test_clients import connect, request_bytes, settled, streams_for_ever


@contextmanager
def cycles() -> Iterator[list[str]]:
    """The types of what only a collection of cycles would have freed, of ours and of the parsers."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        kinds = (type(left) for left in gc.garbage)
        found += sorted({kind.__name__ for kind in kinds if kind.__module__.startswith(("router.", "httptools"))})
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def test_an_answer_that_ends_leaves_no_cycles() -> None:
    async with router_with(plays) as (router, _):
        await router.chat()
        with cycles() as found:
            await router.chat()
            await router.chat(stream=False)
        assert [] == found


async def test_an_answer_whose_client_leaves_leaves_no_cycles() -> None:
    async with router_with(streams_for_ever) as (router, engines):
        with cycles() as found:
            reader, writer = await connect(router)
            writer.write(request_bytes())
            await reader.readuntil(b"again")
            writer.transport.abort()
            await until(lambda: engines[0].open == 0)
            await settled(router)
            del reader, writer
        assert [] == found


@pytest.mark.parametrize(
    ("since_s", "open_calls", "collects"),
    [
        (INTERVAL_S - 1, 0, False),
        (INTERVAL_S, QUIET_CALLS, True),
        (INTERVAL_S, QUIET_CALLS + 1, False),
        (LIMIT_S, 5000, True),
    ],
)
def test_everything_is_looked_at_in_quiet_moments_or_after_very_long(
    since_s: float, open_calls: int, collects: bool
) -> None:
    garbage = Garbage(100.0)
    assert collects == garbage.sweep(100.0 + since_s, open_calls=open_calls)


def test_a_collection_in_a_quiet_moment_is_not_repeated_at_once() -> None:
    garbage = Garbage(0.0)
    assert [True, False] == [garbage.sweep(at, open_calls=0) for at in (INTERVAL_S, INTERVAL_S + 1)]

"""What the in-process registry does beyond the contract: a clock of its own and outages on demand."""

from __future__ import annotations

import asyncio

import pytest

from tests.wire.follower import following
from wire.memory import MemoryRegistry
from wire.registry import LeaseLost, RegistryUnavailable


async def test_a_lease_ends_by_the_clock_that_was_given() -> None:
    now = 0.0
    registry = MemoryRegistry(clock=lambda: now)
    lease = await registry.grant(10)
    await registry.put("a", b"1", lease=lease)
    now = 9.9
    assert await registry.get("a") is not None
    now = 10.0
    assert await registry.get("a") is None
    with pytest.raises(LeaseLost):
        await registry.keep_alive(lease, 10)


async def test_a_watch_wakes_for_a_lease_that_ends_though_nobody_calls() -> None:
    registry = MemoryRegistry()
    async with following(registry, "") as follower:
        lease = await registry.grant(1)
        await registry.put("a", b"1", lease=lease)
        await follower.until(lambda f: [c.entry is None for c in f.changes] == [False, True])


async def test_an_outage_stops_calls_and_watches_and_loses_nothing() -> None:
    registry = MemoryRegistry()
    async with following(registry, "") as follower:
        await registry.put("a", b"1")
        await follower.until(lambda f: "a" in f.view)
        registry.set_away(True)
        await follower.until_cut_off()
        with pytest.raises(RegistryUnavailable):
            await registry.put("a", b"2")
        registry.set_away(False)
        await follower.until_connected()
        await registry.put("a", b"3")
        await follower.until(lambda f: f.view["a"].value == b"3")
    assert 1 == len(follower.snapshots)


async def test_a_watch_that_reads_too_slowly_starts_over() -> None:
    registry = MemoryRegistry()
    stream = registry.watch("")
    await anext(stream)
    await registry.put("a", b"1")
    await registry.put("b", b"1")
    registry.compact()
    async with asyncio.timeout(10):
        assert ("a", "b") == tuple(e.key for e in (await anext(stream)).entries)  # type: ignore[union-attr]
    await stream.aclose()

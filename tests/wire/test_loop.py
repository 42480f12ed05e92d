"""The guard of the event loop sees what it is for."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.wire.loop import calm_loop


async def test_a_blocked_loop_is_seen() -> None:
    with pytest.raises(AssertionError):
        async with calm_loop():
            time.sleep(0.4)  # noqa: ASYNC251 - the very thing


async def test_a_loop_that_waits_is_calm() -> None:
    async with calm_loop():
        await asyncio.sleep(0.4)


async def test_an_exception_that_nobody_collected_is_seen() -> None:
    def forget() -> None:
        asyncio.get_running_loop().create_future().set_exception(ValueError("lost"))

    with pytest.raises(AssertionError):
        async with calm_loop():
            forget()

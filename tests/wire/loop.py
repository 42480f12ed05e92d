"""Watches the event loop while a test runs: how long it stood still, and errors that nobody collected."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")

TICK_S = 0.01
LONGEST_STANDSTILL_S = 0.25


@contextlib.asynccontextmanager
async def calm_loop() -> AsyncIterator[None]:
    """Fails if the loop stood still for longer than a quarter of a second, or an exception was left behind.

    A thread measures the same, so that a machine with other work to do is not taken for a blocked loop."""
    loop = asyncio.get_running_loop()
    left_behind: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: left_behind.append(context))
    ticker, stop, starved_s = _Ticker(loop), threading.Event(), [0.0]
    thread = threading.Thread(target=_measure_thread, args=(stop, starved_s))
    thread.start()
    try:
        yield
    finally:
        ticker.stop()
        stop.set()
        thread.join()
    gc.collect()
    await asyncio.sleep(0)
    assert [] == left_behind
    assert ticker.longest_s - starved_s[0] < LONGEST_STANDSTILL_S


def calm(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, Coroutine[Any, Any, None]]:
    """The same for a whole test, but not for its fixtures: between them the loop does not run."""

    @functools.wraps(test)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async with calm_loop():
            await test(*args, **kwargs)

    return run


class _Ticker:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.longest_s = 0.0
        self._loop = loop
        self._last = time.monotonic()
        self._handle = loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        self.longest_s, self._last = max(self.longest_s, now - self._last), now
        self._handle = self._loop.call_later(TICK_S, self._tick)

    def stop(self) -> None:
        self._handle.cancel()


def _measure_thread(stop: threading.Event, longest_s: list[float]) -> None:
    last = time.monotonic()
    while not stop.wait(TICK_S):
        now = time.monotonic()
        longest_s[0], last = max(longest_s[0], now - last), now

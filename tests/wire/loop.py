"""Watches the event loop while a test runs: how long it stood still, and errors that nobody collected."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec

P = ParamSpec("P")

TICK_S = 0.02
LONGEST_STANDSTILL_S = 0.25


@contextlib.asynccontextmanager
async def calm_loop() -> AsyncIterator[None]:
    """Fails if the loop stood still for longer than a quarter of a second, or an exception was left behind.

    Time in which this process was ready to run and got no processor does not count: the machine may be busy."""
    loop = asyncio.get_running_loop()
    left_behind: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: left_behind.append(context))
    ticker = _Ticker(loop)
    try:
        yield
    finally:
        ticker.stop()
    gc.collect()
    await asyncio.sleep(0)
    assert [] == left_behind
    assert ticker.longest_s < LONGEST_STANDSTILL_S


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
        self._last, self._waited_ns = time.monotonic(), _waited_ns()
        self._handle = loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        now, waited_ns = time.monotonic(), _waited_ns()
        in_line_ns = sum(ns - self._waited_ns.get(thread, ns) for thread, ns in waited_ns.items())
        self.longest_s = max(self.longest_s, now - self._last - in_line_ns / 1e9)
        self._last, self._waited_ns = now, waited_ns
        self._handle = self._loop.call_later(TICK_S, self._tick)

    def stop(self) -> None:
        self._tick()
        self._handle.cancel()


def _waited_ns() -> dict[str, int]:
    """How long each of our threads stood in line for a processor so far; empty where the system does not tell."""
    found = {}
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            found[task.parent.name] = int(task.read_text().split()[1])
        except (OSError, ValueError, IndexError):
            continue  # a thread that has just ended
    return found

"""All processes of one `switchyard up`: watched while they run, ended in good order.

While starting, a process that ends by itself is the end of `up`. Afterwards it is started again, a little later each
time, because that is what an operator's own supervisor would do, and `kill -9` is something people should try.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from control.errors import Failed
from control.screen import Screen
from control.supervise import Child, told

RESTART_DELAYS_S = (0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_S = 60.0
"""A process that ran this long has its earlier ends forgiven."""
POLL_S = 0.1

Restarted = Callable[[Child], Awaitable[None]]


class House:
    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._stages: list[list[Child]] = []
        self._ends: dict[str, list[float]] = {}

    def start(self, children: Sequence[Child]) -> None:
        """A stage. Stages end in the reverse order of their starts, the children of one stage together."""
        self._stages.append(list(children))
        for child in children:
            child.start()

    async def watch_start(self) -> NoReturn:
        """Until cancelled. Raise Failed when a process ends."""
        while True:
            for child in self._children():
                if (code := child.exit_code()) is not None and not child.stopping:
                    raise Failed(_ended_early(child, code))
            await asyncio.sleep(POLL_S)

    async def keep(self, on_restart: Restarted) -> NoReturn:
        """Until cancelled: start again what ends."""
        while True:
            for child in self._children():
                if (code := child.exit_code()) is not None and not child.stopping:
                    await self._restart(child, code, on_restart)
            await asyncio.sleep(POLL_S)

    async def stop(self, *, limit_s: float, now: asyncio.Event) -> None:
        """Show each on its own line. `now` set: at once."""
        for child in (child for stage in reversed(self._stages) for child in stage if child.runs()):
            self._screen.add(child.name, state="running")
        for stage in reversed(self._stages):
            async with asyncio.TaskGroup() as group:
                for child in stage:
                    group.create_task(self._stop(child, limit_s, now))

    def close(self) -> None:
        for child in self._children():
            child.close()

    async def _stop(self, child: Child, limit_s: float, now: asyncio.Event) -> None:
        if not child.runs():
            return
        self._screen.show(child.name, "stopping")
        by_itself = await child.stop(limit_s=limit_s, now=now)
        why = "at once, as was asked" if now.is_set() else "was ended: it did not stop by itself in time"
        self._screen.show(child.name, "stopped", "" if by_itself else why)

    async def _restart(self, child: Child, code: int, on_restart: Restarted) -> None:
        now = time.monotonic()
        ends = [at for at in self._ends.get(child.name, ()) if now - at < STEADY_S]
        delay_s = RESTART_DELAYS_S[min(len(ends), len(RESTART_DELAYS_S) - 1)]
        self._ends[child.name] = [*ends, now]
        self._screen.say(f"{child.name} ended ({told(code)}); starting it again in {delay_s:.1f} s, see {child.log}")
        await asyncio.sleep(delay_s)
        child.start()
        await on_restart(child)
        self._screen.say(f"{child.name} runs again")

    def _children(self) -> list[Child]:
        return [child for stage in self._stages for child in stage]


def _ended_early(child: Child, code: int) -> str:
    lines = "\n".join(f"    {line}" for line in child.last_lines())
    return f"{child.name} ended while starting ({told(code)}); its log is {child.log} and ends with:\n{lines}"

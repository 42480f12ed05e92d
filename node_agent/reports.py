"""Load reports in time: a new one at each change, at least 50 ms and at most 250 ms after the one before.

One report serves all routers; only `seen` differs. A router that is slow to read skips reports, it never queues them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import msgspec

from node_agent.core.report import Load, Pacing, SentBook, differs
from node_agent.notice import Notice


class Report(msgspec.Struct, frozen=True):
    sequence: int
    at: float
    loads: tuple[Load, ...]


class Reporter:
    def __init__(
        self,
        loads: Callable[[float], tuple[Load, ...]],
        changed: Notice,
        *,
        clock: Callable[[], float],
        epoch: int,
        book: SentBook,
        pacing: Pacing | None = None,
    ) -> None:
        self._loads, self._changed, self._clock = loads, changed, clock
        self._pacing = pacing or Pacing()
        self.epoch, self.book = epoch, book
        self._published = Notice()
        self.latest = Report(0, -math.inf, ())

    async def run(self) -> None:
        while True:
            await self._wait_until_due()
            now = self._clock()
            self.book.news = False
            self.latest = Report(self.latest.sequence + 1, now, self._loads(now))
            self._published.tell()

    async def newest(self) -> Report:
        """What the latest report says; waits only for the very first."""
        return await self.after(max(0, self.latest.sequence - 1))

    async def after(self, sequence: int) -> Report:
        """The newest report, once it is newer than that one."""
        while self.latest.sequence <= sequence:
            await self._published.wait()
        return self.latest

    async def _wait_until_due(self) -> None:
        while True:
            now = self._clock()
            due = self._pacing.due(self.latest.at, changed=self._has_changed(now))
            if now >= due:
                return
            # Until the earliest moment a report may leave, nothing that changes can make it leave sooner.
            earliest = self._pacing.due(self.latest.at, changed=True)
            if now < earliest:
                await asyncio.sleep(earliest - now)
            else:
                await self._changed.wait(due - now)

    def _has_changed(self, now: float) -> bool:
        loads = self._loads(now)
        return self.book.news or len(loads) != len(self.latest.loads) or any(map(differs, self.latest.loads, loads))

"""Something has changed: wakes everyone who waits, keeps nothing. Who wakes looks for what it cares about."""

from __future__ import annotations

import asyncio
import contextlib


class Notice:
    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, limit_s: float | None = None) -> None:
        """Return at the next `tell`, or after the time limit."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._event.wait()

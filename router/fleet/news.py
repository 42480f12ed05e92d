"""Wakes requests that wait for a replica whenever the fleet may look different: a report, a new view, a freed slot."""

from __future__ import annotations

import asyncio


class News:
    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def tell(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def wait(self, limit_s: float) -> None:
        """Return on the next news, or after the limit."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            async with asyncio.timeout(limit_s):
                await future
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(future)

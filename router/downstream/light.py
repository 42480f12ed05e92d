"""Small stand-ins for what uvicorn makes per connection and most connections never use.

An `asyncio.Event` and a `deque` each hold 600 bytes for waiters and members from the start, and a connection has four
of them. With thousands of open streams that is more than the streams' own text.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from uvicorn.protocols.http.flow_control import FlowControl

T = TypeVar("T")


class Signal:
    """What uvicorn uses of `asyncio.Event`."""

    __slots__ = ("_awaited", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._awaited: list[asyncio.Future[None]] | None = None

    def set(self) -> None:
        self._is_set = True
        awaited, self._awaited = self._awaited, None
        for future in awaited or ():
            if not future.done():
                future.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> None:
        """Return when it is set, or was set meanwhile."""
        if self._is_set:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited = self._awaited or []
        self._awaited.append(future)
        await future


class Queue(list[T]):
    """A few members, of which a `deque` makes a block of 64."""

    __slots__ = ()

    def appendleft(self, member: T) -> None:
        self.insert(0, member)

    def popleft(self) -> T:
        return self.pop(0)


class Flow(FlowControl):
    """uvicorn's, with a signal."""

    __slots__ = ("_is_writable_event", "_transport", "read_paused", "write_paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.write_paused = False
        self._is_writable_event = Signal()  # type: ignore[assignment]
        self._is_writable_event.set()

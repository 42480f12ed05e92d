"""Keep-alive connections to engines: last used first, no scan on the way of a request, no lock.

httpcore's pool rescans all its connections per request (see exemplars); here an idle connection is found by its
address, and a sweep now and then closes what idled too long.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque

from router.descriptors import EXHAUSTED
from router.silence import notice_loss
from router.upstream.connection import EngineConnection
from router.upstream.rtt import kernel_rtt_s

IDLE_LIMIT_S = 4.0
"""vLLM's server closes idle connections after 5 s: leave them before it does."""
IDLE_PER_ENGINE = 256
CONNECT_LIMIT_S = 3.0
LOSS_LIMIT_S = 6.0
"""A host that acknowledges nothing for so long is gone. The kernel answers for an engine that stands still; what it
does then is judged by core/stall.py."""


class ConnectFailed(Exception):  # noqa: N818 - names what happened
    """The engine's host refused the connection, or did not answer in time. `ours`: this host could not even ask."""

    def __init__(self, message: str, *, ours: bool = False) -> None:
        super().__init__(message)
        self.ours = ours


class EnginePool:
    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        connect_limit_s: float = CONNECT_LIMIT_S,
        idle_limit_s: float = IDLE_LIMIT_S,
    ) -> None:
        self._idle: dict[str, deque[EngineConnection]] = {}
        self._busy: set[EngineConnection] = set()
        self._tls = tls
        self._connect_limit_s = connect_limit_s
        self._idle_limit_s = idle_limit_s
        self._clock = asyncio.get_running_loop().time

    def idle(self, address: str) -> EngineConnection | None:
        """An open connection that waits for work, now counted as busy."""
        waiting = self._idle.get(address)
        now = self._clock()
        while waiting:
            connection = waiting.pop()
            if connection.open and now - connection.idle_since < self._idle_limit_s:
                self._busy.add(connection)
                return connection
            connection.abort()
        return None

    async def connect(self, address: str, *, tls: bool = False) -> EngineConnection:
        """A new connection. Raises ConnectFailed with a sentence."""
        try:
            async with asyncio.timeout(self._connect_limit_s):
                connection = await self._connect(address, self._tls if tls else None)
        except TimeoutError as error:
            raise ConnectFailed(f"no connection to {address} within {self._connect_limit_s:g} s") from error
        except OSError as error:
            ours = error.errno in EXHAUSTED
            raise ConnectFailed(f"cannot connect to {address}: {error.strerror or error}", ours=ours) from error
        self._busy.add(connection)
        return connection

    async def _connect(self, address: str, tls: ssl.SSLContext | None) -> EngineConnection:
        """Where descriptors have run out, idle connections make room."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        while True:
            try:
                transport, connection = await loop.create_connection(
                    lambda: EngineConnection(address), host.strip("[]"), int(port), ssl=tls
                )
            except OSError as error:
                if error.errno not in EXHAUSTED or not self._idle:
                    raise
                self._close_idle()
                await asyncio.sleep(0)  # the loop closes sockets in its next turn
            else:
                if (raw := transport.get_extra_info("socket")) is not None:
                    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    notice_loss(raw, LOSS_LIMIT_S)
                    connection.rtt_s = kernel_rtt_s(raw)
                return connection

    def release(self, connection: EngineConnection) -> None:
        """Give a connection back. One in the middle of an answer is closed, which cancels the engine's work."""
        self._busy.discard(connection)
        if connection.paused:
            connection.resume()
        waiting = self._idle.get(connection.address)
        if waiting is None:
            waiting = self._idle[connection.address] = deque()
        if connection.busy or not connection.reusable or not connection.open or len(waiting) >= IDLE_PER_ENGINE:
            connection.abort()
            return
        connection.idle_since = self._clock()
        waiting.append(connection)

    def sweep(self) -> None:
        """Close what has idled too long, oldest first."""
        limit = self._clock() - self._idle_limit_s
        for address, waiting in list(self._idle.items()):
            while waiting and waiting[0].idle_since < limit:
                waiting.popleft().abort()
            if not waiting:
                del self._idle[address]

    @property
    def busy_count(self) -> int:
        return len(self._busy)

    @property
    def idle_count(self) -> int:
        return sum(len(waiting) for waiting in self._idle.values())

    def close(self) -> None:
        for connection in self._busy:
            connection.abort()
        self._busy.clear()
        self._close_idle()

    def _close_idle(self) -> None:
        for waiting in self._idle.values():
            for connection in waiting:
                connection.abort()
        self._idle.clear()

"""Replicas on ports of one process: binds early, listens once loaded, stops listening while a fault says so, drains.

Like vLLM, a port is bound from the start and refuses connections until the model is "loaded". A second socket, bound
and never listening, keeps the port ours while nothing listens on it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from node_agent.engines.simulated.http import Connection
from node_agent.engines.simulated.replica import Config, Replica
from node_agent.engines.simulated.routes import Routes

_DRAIN_POLL_S = 0.02
_LAST_WRITES_S = 0.3


class Host:
    """One replica on its port."""

    def __init__(self, config: Config, ready: Callable[[str, int], None]) -> None:
        """`ready` is called each time the replica begins to listen."""
        self.config = config
        self.ready = ready
        self._holder = _bound(config.host, config.port)
        self.port: int = self._holder.getsockname()[1]
        self.replica = Replica(config, asyncio.get_running_loop(), self._go_down)
        self.routes = Routes(self.replica)
        self._down = asyncio.Event()
        self._closed_s: float | None = None

    async def run(self) -> None:
        """Serve until `stop`."""
        try:
            await asyncio.sleep(self.config.load_time_s)
            while True:
                await self._listen_until_down()
                if self._closed_s is None:
                    return
                await asyncio.sleep(self._closed_s)
        finally:
            self._holder.close()

    async def _listen_until_down(self) -> None:
        loop = self.replica.loop
        listener = _bound(self.config.host, self.port)
        server = await loop.create_server(lambda: Connection(self.routes), sock=listener, backlog=4096)
        try:
            self.ready(self.config.host, self.port)
            await self._down.wait()
            self._down.clear()
        finally:
            server.close()

    async def stop(self) -> None:
        """SIGTERM: with a shutdown time, go on listening and refuse new requests until the old ones end."""
        self.replica.draining = True
        patience = self.config.shutdown_timeout_s
        while self.replica.calls and patience > 0:
            await asyncio.sleep(_DRAIN_POLL_S)
            patience -= _DRAIN_POLL_S
        self._go_down(None)
        self.replica.stop()
        for _ in range(int(_LAST_WRITES_S / _DRAIN_POLL_S)):
            if not self.replica.connections:
                break
            await asyncio.sleep(_DRAIN_POLL_S)

    def _go_down(self, seconds: float | None) -> None:
        self._closed_s = seconds
        self._down.set()


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock

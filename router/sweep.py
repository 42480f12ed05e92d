"""One timer for all that has a time limit: silent streams, slow clients, idle connections. No timer per chunk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from router.downstream.protocol import RouterProtocol
from router.relay import Relay
from router.upstream.pool import EnginePool

SWEEP_INTERVAL_S = 0.25


class Sweep:
    def __init__(
        self, relays: Mapping[Relay, object], pool: EnginePool, connections: Callable[[], Iterable[RouterProtocol]]
    ) -> None:
        self._relays = relays
        self._pool = pool
        self._connections = connections

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            now = clock()
            for relay in list(self._relays):
                relay.sweep(now)
            for connection in list(self._connections()):
                connection.overdue(now)
            self._pool.sweep()

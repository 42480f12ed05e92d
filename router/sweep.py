"""One timer for all that has a time limit: silent streams, waiting requests, slow clients, idle connections. No timer
per chunk or request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from router.attempt import Attempts
from router.downstream.protocol import RouterProtocol
from router.garbage import Garbage
from router.gate import Gate
from router.kept.table import KeptStreams
from router.upstream.pool import EnginePool

SWEEP_INTERVAL_S = 0.25
PAUSE_S = 1.0
"""A sweep this late says that the whole process stood still: nothing that was silent meanwhile is to blame."""


class Sweep:
    def __init__(
        self,
        attempts: Attempts,
        gate: Gate,
        kept: KeptStreams,
        pool: EnginePool,
        connections: Callable[[], Iterable[RouterProtocol]],
    ) -> None:
        self._attempts = attempts
        self._gate = gate
        self._pool = pool
        self._connections = connections
        self._kept = kept

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        last = clock()
        garbage = Garbage(last)
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            now = clock()
            late_s, last = now - last - SWEEP_INTERVAL_S, now
            pause_s = late_s if late_s > PAUSE_S else 0.0
            await self._attempts.sweep(now, pause_s)
            self._gate.sweep(now)
            self._kept.sweep(now, pause_s)
            for connection in list(self._connections()):
                connection.overdue(now)
            self._pool.sweep()
            if garbage.sweep(now, open_calls=len(self._attempts.active)):
                last = clock()  # it stood still for that, and knows it

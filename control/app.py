"""The control-plane process: who is made, who runs, and in which order it ends. Only this module wires.

Minimal for now: it watches the fleet, says what changes, keeps the region's record and answers operators. Desired
state, prices and the autoscaler will be wired here.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from control.admin import application
from control.settings import ControlSettings
from control.watch import FleetWatch, RegionKeeper
from wire.connect import connect

log = logging.getLogger("control")


class Server(uvicorn.Server):
    """uvicorn without its own signal handling: this process decides when it ends."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: ControlSettings) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    registry = connect(settings.registry)
    watch = FleetWatch(registry, on_change=_say)
    keeper = RegionKeeper(registry, watch, region=settings.region, title=settings.region_title)
    server = Server(
        uvicorn.Config(application(watch), host=settings.host, port=settings.port, log_config=None, access_log=False)
    )
    try:
        async with asyncio.TaskGroup() as group:
            work = [group.create_task(watch.run()), group.create_task(keeper.run())]
            serving = group.create_task(server.serve())
            group.create_task(_stopping(stop, server))
            await serving
            stop.set()
            for task in work:
                task.cancel()
    finally:
        await registry.close()


async def _stopping(stop: asyncio.Event, server: Server) -> None:
    await stop.wait()
    log.info("stopping")
    server.should_exit = True


def _say(sentences: list[str]) -> None:
    for sentence in sentences:
        log.info(sentence)

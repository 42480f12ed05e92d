"""The control-plane process: who is made, who runs, and in which order it ends. Only this module wires.

Minimal for now: it watches the fleet, says what changes, keeps the region's record and answers operators. Desired
state, prices and the autoscaler will be wired here.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from control.admin import application
from control.errors import Failed
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
    """Until SIGTERM or SIGINT. Raise Failed when the port cannot be had."""
    listener = _listen(settings.host, settings.port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    registry = connect(settings.registry)
    watch = FleetWatch(registry, on_change=_say)
    keeper = RegionKeeper(registry, watch, region=settings.region, title=settings.region_title)
    server = Server(uvicorn.Config(application(watch), log_config=None, access_log=False))
    log.info("control plane of region %s on http://%s:%s", settings.region, *listener.getsockname()[:2])
    try:
        async with asyncio.TaskGroup() as group:
            work = [group.create_task(watch.run()), group.create_task(keeper.run())]
            serving = group.create_task(server.serve(sockets=[listener]))
            group.create_task(_stopping(stop, server))
            await serving
            stop.set()
            for task in work:
                task.cancel()
    finally:
        await registry.close()


def _listen(host: str, port: int) -> socket.socket:
    """Bound here: uvicorn would end the process with a traceback when the port is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = f"cannot listen on {host}:{port}: {error.strerror}; choose another with --host or --port"
        raise Failed(reason) from error
    return listener


async def _stopping(stop: asyncio.Event, server: Server) -> None:
    await stop.wait()
    log.info("stopping")
    server.should_exit = True


def _say(sentences: list[str]) -> None:
    for sentence in sentences:
        log.info(sentence)

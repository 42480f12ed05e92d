"""What operators may ask the control plane over HTTP: is it well, and what does it believe of the fleet. The control
plane's only door to Starlette. Read-only; it listens on loopback unless told otherwise."""

from __future__ import annotations

import time

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from control.core.fleet import model_rows, node_rows
from control.watch import FleetWatch
from wire.records import Replica, Router


def application(watch: FleetWatch) -> Starlette:
    async def health(_request: Request) -> Response:
        """200 while the process serves: with the registry away it still knows the fleet as it was."""
        return _json({"status": "ok", "registry": "connected" if watch.connected else "lost"})

    async def ready(_request: Request) -> Response:
        return _json({"ready": watch.revision > 0}, 200 if watch.revision > 0 else 503)

    async def fleet(_request: Request) -> Response:
        return _json(
            {
                "revision": watch.revision,
                "current": watch.connected,
                "nodes": node_rows(watch.fleet, now_unix_ns=time.time_ns()),
                "replicas": watch.fleet.of(Replica),
                "models": model_rows(watch.fleet),
                "routers": watch.fleet.of(Router),
                "unreadable": watch.fleet.unreadable,
            }
        )

    return Starlette(routes=[Route("/health", health), Route("/ready", ready), Route("/fleet", fleet)])


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")

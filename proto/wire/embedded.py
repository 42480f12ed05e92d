"""A registry server for one machine: etcd's wire protocol, as far as we and `etcdctl` use it, over a Store.

    python -m wire.embedded --port 2379 --data-file registry.json

The same client talks to it as to etcd, so that there is no second code path. It is one process and not highly
available; it has no users, and it keeps only keys without a lease over a restart (`embedded_file.py`): agents
register again, which they do within seconds. Three members of etcd are for production.

This module listens, lets leases end and stops; what a request does is in `embedded_service.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop

from wire.embedded_file import DataFile
from wire.embedded_service import Service
from wire.store import Store

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 2 * 1024 * 1024),  # etcd's own limit, near enough
    # Clients that ping an idle connection are welcome; gRPC would hang up on them.
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    # A port that is taken is an error, not something to share.
    ("grpc.so_reuseport", 0),
)
EXPIRY_CHECK_S = 0.2
STOP_GRACE_S = 0.5


@contextlib.asynccontextmanager
async def serve(
    host: str,
    port: int,
    store: Store,
    *,
    credentials: grpc.ServerCredentials | None = None,
    before_answer: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[int]:
    """Serve the store until the context ends; gives the bound port. Raises OSError when the port is taken."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    service = Service(store, before_answer=before_answer, clock=clock)
    server.add_generic_rpc_handlers((_Router(service.handlers()),))
    address = f"{host}:{port}"
    try:
        bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: is something else there?") from error
    await server.start()
    timer = _Repeating(EXPIRY_CHECK_S, service.expire)
    try:
        yield bound
    finally:
        timer.cancel()
        await server.stop(STOP_GRACE_S)


class _Router(grpc.GenericRpcHandler):
    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = handlers

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(call.method)


class _Repeating:
    """Call something now and then on the running loop, until cancelled."""

    def __init__(self, every_s: float, what: Callable[[], None]) -> None:
        self._every_s, self._what = every_s, what
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(every_s, self._run)

    def _run(self) -> None:
        self._handle = self._loop.call_later(self._every_s, self._run)
        self._what()

    def cancel(self) -> None:
        self._handle.cancel()


def fresh_store(*, saved: DataFile | None = None) -> Store:
    """A store whose revisions are above those of any earlier run.

    Revisions start at the wall clock in milliseconds: a client that resumes at a revision of an earlier run finds it
    compacted and lists again, instead of waiting for a number that comes much later."""
    revision = time.time_ns() // 1_000_000
    return saved.load(revision) if saved else Store(revision=revision)


async def run(host: str, port: int, data_file: Path | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    saved = DataFile(data_file) if data_file else None
    store = fresh_store(saved=saved)
    before_answer = saved.follow(store) if saved else lambda: None
    async with serve(host, port, store, before_answer=before_answer) as bound:
        sys.stdout.write(f"registry listening on {host}:{bound}\n")
        sys.stdout.flush()
        await stop.wait()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m wire.embedded", description="A registry server for one machine.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=2379, help="port; 0 takes a free one (default: %(default)s)")
    parser.add_argument("--data-file", type=Path, help="keeps keys without a lease over a restart (default: nothing)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        uvloop.run(run(args.host, args.port, args.data_file))
    except (OSError, ValueError) as error:
        sys.exit(f"wire.embedded: {error}")


if __name__ == "__main__":
    main()

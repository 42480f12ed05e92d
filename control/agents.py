"""Send a command to a node agent and tell how it goes. The control plane's only door to gRPC.

No call here hangs for want of an agent: connecting has a time limit, the work itself has as long as it takes, because
loading a large model takes minutes and the agent reports its progress.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from control.errors import Failed
from wire.v1 import node_pb2 as pb
from wire.v1.node_pb2_grpc import NodeAgentStub

CONNECT_LIMIT_S = 5.0
_OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

Call = Callable[[NodeAgentStub], AsyncIterator[pb.Progress]]


def load(replica: str) -> Call:
    return lambda stub: stub.Load(pb.ReplicaCommand(replica=replica))


def unload(replica: str) -> Call:
    return lambda stub: stub.Unload(pb.ReplicaCommand(replica=replica))


def sleep(replica: str, *, level: int) -> Call:
    return lambda stub: stub.Sleep(pb.SleepCommand(replica=replica, level=level))


def wake(replica: str) -> Call:
    return lambda stub: stub.Wake(pb.ReplicaCommand(replica=replica))


def drain(replica: str, *, limit_s: float, stop: bool) -> Call:
    """`replica` empty: the whole node."""
    return lambda stub: stub.Drain(pb.DrainCommand(replica=replica, limit_s=limit_s, stop=stop))


def undrain(replica: str) -> Call:
    return lambda stub: stub.Undrain(pb.UndrainCommand(replica=replica))


async def command(
    address: str,
    call: Call,
    *,
    on_progress: Callable[[pb.Progress], None],
    credentials: grpc.ChannelCredentials | None = None,
    connect_limit_s: float = CONNECT_LIMIT_S,
) -> None:
    """Return when the agent says that all is done. Raise Failed with the agent's own reason otherwise."""
    async with _channel(address, credentials) as channel:
        await _connected(channel, address, connect_limit_s)
        reasons, last = [], pb.Progress()
        try:
            async for progress in call(_stub(channel)):
                last = progress
                on_progress(progress)
                if progress.error:
                    named = progress.error.startswith(progress.replica)
                    reasons.append(progress.error if named else f"{progress.replica}: {progress.error}")
        except grpc.aio.AioRpcError as error:
            raise Failed(_lost(address, error)) from error
    if reasons:
        raise Failed("; ".join(reasons))
    if not last.done:
        raise Failed(f"the agent at {address} stopped telling before it was done; look with `switchyard nodes`.")


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)


def _stub(channel: grpc.aio.Channel) -> Any:
    """The generated stub is typed for synchronous channels and works on both."""
    return NodeAgentStub(channel)  # type: ignore[no-untyped-call]


async def _connected(channel: grpc.aio.Channel, address: str, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await channel.channel_ready()
    except TimeoutError as error:
        raise Failed(
            f"the agent at {address} does not answer; see if it runs on its host, and if this host may reach that port."
        ) from error


def _lost(address: str, error: grpc.aio.AioRpcError) -> str:
    if error.code() in (
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
    ):
        return str(error.details())
    return f"the agent at {address} broke off ({error.code().name}: {error.details()}); look with `switchyard nodes`."

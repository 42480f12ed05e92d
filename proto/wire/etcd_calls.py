"""Calls to etcd that end: one channel per endpoint, a deadline on everything, retries, and the token.

An endpoint is kept until it fails, then the next one is tried. Round robin is not used: it keeps choosing a dead
member. What a failed call means is decided in `etcd_errors.py`; what the calls are for, in `etcd.py`.

Sources: grpc's channel argument reference; the etcd client's retry rules (etcd.io/docs/v3.5/learning/design-client).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from wire.etcd_errors import Verdict, judge
from wire.etcd_methods import AUTHENTICATE, A, Method, Q
from wire.registry import LeaseLost, RegistryError, RegistryUnavailable

log = logging.getLogger(__name__)

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A safety net: etcd refuses pings closer than 5 s. Watches have a quicker probe of their own.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 2000),
    # grpcio does not honour keepalive_timeout_ms without this one: it waits a minute.
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    # gRPC's own back-off between connection attempts grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    # The registry is a neighbour; a proxy for the web must not get between.
    ("grpc.enable_http_proxy", 0),
)
ATTEMPTS = 3
"""A call's time limit is enough for this many attempts that get no answer at all."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 0.5

# A local cancellation shows as CancelledError, so AioRpcError is always the other side or the network.
# InvalidStateError: writing to a stream that has just ended. UsageError: the channel was closed under us.
BROKEN = (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError, grpc.aio.UsageError)


class Interrupted(Exception):  # noqa: N818 - what happened to a stream; it is opened again
    """A stream broke in a way that passes."""


class HistoryLost(RegistryError):  # noqa: N818
    """What a read or a watch wanted was compacted away, or the store is no longer the same: list again."""


class Endpoint:
    """A channel to one member."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.target = target
        self.channel = (
            grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        )
        self._callables: dict[str, Any] = {}

    def unary(self, method: Method[Q, A]) -> grpc.aio.UnaryUnaryMultiCallable[Q, A]:
        made: grpc.aio.UnaryUnaryMultiCallable[Q, A] = self._callable(method, self.channel.unary_unary)
        return made

    def stream(self, method: Method[Q, A]) -> grpc.aio.StreamStreamMultiCallable[Q, A]:
        made: grpc.aio.StreamStreamMultiCallable[Q, A] = self._callable(method, self.channel.stream_stream)
        return made

    def _callable(self, method: Method[Q, A], make: Callable[..., Any]) -> Any:
        if method.path not in self._callables:
            self._callables[method.path] = make(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.answer.FromString,
            )
        return self._callables[method.path]

    async def connected(self, limit_s: float) -> None:
        """Raise TimeoutError unless there is a connection: what must not be sent twice is not sent into the dark."""
        async with asyncio.timeout(limit_s):
            while (state := self.channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    raise TimeoutError(f"no connection to {self.target}")
                await self.channel.wait_for_state_change(state)


class Calls:
    def __init__(
        self,
        targets: Sequence[str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        user: str = "",
        password: Callable[[], str] = str,
        timeout_s: float = 3.0,
        first: int = 0,
    ) -> None:
        """Make it inside the running loop. `timeout_s` limits a call with all its attempts."""
        asyncio.get_running_loop()
        self._endpoints = [Endpoint(target, credentials) for target in targets]
        self._at = first % len(self._endpoints)
        self._user, self._password = user, password
        self._token = ""
        self._logging_in = asyncio.Lock()
        self._timeout_s = timeout_s
        self._closing = asyncio.Event()

    @property
    def target(self) -> str:
        """The endpoint in use."""
        return self._endpoints[self._at].target

    async def close(self) -> None:
        self._closing.set()
        await asyncio.gather(*(endpoint.channel.close() for endpoint in self._endpoints))

    async def unary(self, method: Method[Q, A], request: Q, *, once: bool = False) -> A:
        """Call until there is an answer or the time is over. `once`: never send again what may have been done.

        Raises RegistryUnavailable, LeaseLost, HistoryLost or, for a definite no, RegistryError."""
        ends_at, pause_s = time.monotonic() + self._timeout_s, FIRST_PAUSE_S
        while True:
            endpoint, sent = self._endpoint(), False
            try:
                if once:
                    await endpoint.connected(self._limit_s(ends_at))
                metadata = await self._metadata(endpoint, self._limit_s(ends_at))
                sent = once
                # There is no other attempt after the one of `once`, so it may take all the time that is left.
                limit_s = max(0.0, ends_at - time.monotonic()) if once else self._limit_s(ends_at)
                return await endpoint.unary(method)(request, timeout=limit_s, metadata=metadata)
            except BROKEN as error:
                verdict = self._failed(endpoint, error)
                if (verdict is Verdict.ELSEWHERE and sent) or time.monotonic() + pause_s >= ends_at:
                    raise RegistryUnavailable(f"{endpoint.target}: {describe(error)}") from error
            except asyncio.CancelledError:
                self.raise_if_closed()
                raise
            await self.pause(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    @contextlib.asynccontextmanager
    async def stream(
        self, method: Method[Q, A], requests: AsyncIterator[Q] | None = None
    ) -> AsyncIterator[grpc.aio.StreamStreamCall[Q, A]]:
        """A stream that is cancelled on the way out. Raises Interrupted when it broke and may be opened again."""
        endpoint = self._endpoint()
        call: grpc.aio.StreamStreamCall[Q, A] | None = None
        try:
            metadata = await self._metadata(endpoint, self._timeout_s / ATTEMPTS)
            # Without `hasleader` a member that has lost its peers keeps a watch silent for ever.
            call = endpoint.stream(method)(requests, metadata=(*metadata, ("hasleader", "true")))
            yield call
        except Interrupted:
            self._move_on(endpoint)
            raise
        except BROKEN as error:
            self._failed(endpoint, error)
            raise Interrupted(f"{endpoint.target}: {describe(error)}") from error
        except asyncio.CancelledError:
            self.raise_if_closed()
            raise
        finally:
            if call is not None:
                call.cancel()

    async def pause(self, seconds: float) -> None:
        """Between two attempts or beats. Raises RegistryUnavailable at once when the client is closed."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return
        raise RegistryUnavailable("the registry client was closed")

    def log_in_again(self) -> None:
        """Forget the token; the next call fetches a new one."""
        self._token = ""

    def _limit_s(self, ends_at: float) -> float:
        """Time for one attempt."""
        return min(self._timeout_s / ATTEMPTS, max(0.0, ends_at - time.monotonic()))

    def _endpoint(self) -> Endpoint:
        if self._closing.is_set():
            raise RegistryUnavailable("the registry client is closed")
        return self._endpoints[self._at]

    def _move_on(self, failed: Endpoint) -> None:
        if self._endpoints[self._at] is failed:  # else another call has moved on already
            self._at = (self._at + 1) % len(self._endpoints)

    def _failed(self, endpoint: Endpoint, error: Exception) -> Verdict:
        """Prepare the next attempt, or raise if there should be none."""
        if self._closing.is_set():
            raise RegistryUnavailable("the registry client is closed") from error
        if not isinstance(error, grpc.aio.AioRpcError):
            self._move_on(endpoint)
            return Verdict.ELSEWHERE
        verdict = judge(error.code(), error.details() or "")
        match verdict:
            case Verdict.ELSEWHERE:
                self._move_on(endpoint)
            case Verdict.LOG_IN:
                self.log_in_again()
            case Verdict.LEASE_LOST:
                raise LeaseLost(describe(error)) from error
            case Verdict.COMPACTED:
                raise HistoryLost(describe(error)) from error
            case Verdict.REFUSED:
                raise RegistryError(f"{endpoint.target}: {describe(error)}") from error
        return verdict

    def raise_if_closed(self) -> None:
        """Closing cancels calls inside gRPC; a caller that nobody cancelled must not see a cancellation."""
        task = asyncio.current_task()
        if self._closing.is_set() and task is not None and not task.cancelling():
            raise RegistryUnavailable("the registry client was closed")

    async def _metadata(self, endpoint: Endpoint, limit_s: float) -> tuple[tuple[str, str], ...]:
        if not self._user:
            return ()
        # The limit holds for the queue before the login too: many calls wait for the same one.
        async with asyncio.timeout(limit_s), self._logging_in:
            if not self._token:
                self._token = await self._log_in(endpoint, limit_s)
            return (("token", self._token),) if self._token else ()

    async def _log_in(self, endpoint: Endpoint, limit_s: float) -> str:
        request = AUTHENTICATE.request(name=self._user, password=self._password())
        try:
            return (await endpoint.unary(AUTHENTICATE)(request, timeout=limit_s)).token
        except grpc.aio.AioRpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                return ""  # as etcd's own client does: switching it off must not stop those who would log in
            raise


def describe(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

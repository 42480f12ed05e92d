"""One try of a request on one replica: connection, request, relay, and the guards that count it.

Whatever ends it (the answer, an error, a silent engine, a client that left), the flight is ended, the connection is
given back or closed, and the attempt says what happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path
from random import Random

import msgspec

from router import whole
from router.call import Attempt, Call
from router.core.busy import Busy
from router.core.errors import Code
from router.core.model import Dispatcher, Ending, Flight
from router.core.stall import Heard
from router.core.usage import Usage
from router.core.usage import read as read_usage
from router.course import Course
from router.downstream.stream import Outlet
from router.fleet.view import View, ready_beside
from router.job import Job
from router.relay import Limits, Relay
from router.settings import RouterSettings
from router.tracecontext import format_traceparent
from router.upstream.connection import EngineConnection
from router.upstream.pool import ConnectFailed, EnginePool
from wire.settings import SettingsError

SWEPT_AT_ONCE = 256
"""Attempts, in less than a millisecond."""

_ENDINGS = {
    Code.OK: Ending.COMPLETE,
    Code.CLIENT_GONE: Ending.CANCELLED,
    Code.ENGINE_ABORTED: Ending.CANCELLED,
    Code.TOTAL_TIMEOUT: Ending.CANCELLED,
    Code.DRAINING: Ending.CANCELLED,
    Code.MOVED: Ending.CANCELLED,
    Code.OUTRUN: Ending.CANCELLED,
    Code.OVERLOADED: Ending.CANCELLED,
    Code.DIVERGED: Ending.CANCELLED,
    Code.ENGINE_REJECTED: Ending.REJECTED,
    Code.ENGINE_BUSY: Ending.REFUSED,
}


_BUSY, _FAILED = Code.ENGINE_BUSY, Ending.FAILED
_LATE = (Code.FIRST_TOKEN_TIMEOUT, Code.STALLED)
_HEAD = (
    b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"x-request-id: %b\r\ntraceparent: %b\r\n%b%b\r\n"
)


def engine_key(path: str) -> bytes:
    """What engines ask for, b"" without a file. Raises SettingsError."""
    try:
        return Path(path).read_bytes().strip() if path else b""
    except OSError as error:
        raise SettingsError(f"cannot read --engine-api-key-file {path}: {error.strerror}") from error


class Attempts:
    def __init__(
        self,
        pool: EnginePool,
        dispatcher: Dispatcher,
        settings: RouterSettings,
        *,
        view: Callable[[], View],
        busy: Busy,
        rng: Random,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._pool = pool
        self._dispatcher = dispatcher
        self._settings = settings
        self._view = view
        self._busy = busy
        self._rng = rng
        self._on_change = on_change
        """A first token came or an attempt ended: there is less work in engines."""
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        key = engine_key(settings.engine_api_key_file)
        self._authorization = b"authorization: Bearer %b\r\n" % key if key else b""
        self._limits = Limits(answer_bytes=settings.answer_limit_bytes, event_bytes=settings.event_limit_bytes)
        self._said: dict[str, Heard | None] = {}
        self._heard, self._elsewhere = self._heard_once, self._another_could  # bound once: open answers share them
        self.active: dict[Relay, Job] = {}
        """What the sweep looks at."""
        self.moving: Collection[str] = ()
        """Replicas that are drained at once."""

    async def run(self, call: Call, client: Outlet, job: Job) -> Relay:
        """Return the relay when its outcome is settled. Cancelled when the client leaves."""
        assert call.shape is not None
        started = self._clock()
        attempt = Attempt(
            replica=job.replica,
            decision=job.decision,
            span_id=self._rng.getrandbits(64) or 1,
            started=started,
            kind=job.kind,
        )
        call.attempts.append(attempt)
        course = Course(call, client, job, self._on_change, self._heard, self._elsewhere)
        relay = self._relay(client, job, attempt, course)
        request = self._request(call, job, attempt)
        connection = self._pool.idle(job.replica.address)
        if connection is not None:  # before all else: the engine works while we count
            relay.attach(connection)
            connection.send(*request, relay)
        del request  # it holds the prompt
        course.flight = flight = self._dispatcher.begin(job.decision, call.shape, started)
        self.active[relay] = job
        if job.rival is not None:
            job.rival.entered(relay)
        try:
            await self._exchange(connection, relay, call, job)
        except ConnectFailed as error:
            relay.stop(Code.OVERLOADED if error.ours else Code.ENGINE_UNREACHABLE, str(error))
        except asyncio.CancelledError:
            relay.stop(Code.CLIENT_GONE)
            raise
        finally:
            del self.active[relay]
            self._settle(relay, job, flight)
            self._on_change()
            if attempt.code is _BUSY:
                self._busy.note(call.model, job.replica.replica, relay.retry_after_s, attempt.ended)
        return relay

    def end_all(self) -> None:
        """The router leaves and the limit is over: every answer still under way ends now."""
        for relay in list(self.active):
            relay.stop(Code.DRAINING, "this router is shutting down")

    async def sweep(self, now: float, pause_s: float) -> None:
        """`pause_s` is how long this process stood still since the last sweep. Among thousands it lets others go on
        in between: their tokens must not wait for it."""
        self._said.clear()
        active = list(self.active.items())
        for at in range(0, len(active), SWEPT_AT_ONCE):
            for relay, job in active[at : at + SWEPT_AT_ONCE]:
                if relay.done.done():
                    continue
                if pause_s:
                    relay.excuse(pause_s)
                relay.sweep(now)
                if job.rival is not None:
                    job.rival.look(relay, now)
            await asyncio.sleep(0)
        if self.moving:
            self.move()

    def move(self) -> None:
        """What runs on replicas that are to be left goes on elsewhere, as far as it can be continued. Asked again and
        again: a request may have been on its way there, or become continuable with its next event."""
        for relay, job in list(self.active.items()):
            if job.replica.replica in self.moving and (not relay.attempt.first_token or job.movable()):
                relay.stop(Code.MOVED, "the replica is being drained")

    def _relay(self, client: Outlet, job: Job, attempt: Attempt, course: Course) -> Relay:
        return Relay(
            attempt,
            client,
            editor=job.editor,
            choices=job.choices,
            course=course,
            limits=self._limits,
            loop=self._loop,
        )

    def _another_could(self, call: Call) -> bool:
        """A replica that has not been tried for this call could take it."""
        return ready_beside(self._view().fleet, call.attempts[-1].replica, {a.replica.replica for a in call.attempts})

    def _heard_once(self, replica: str, now: float) -> Heard | None:
        """What its agent said of a replica, asked once in a sweep for all that wait for it."""
        if replica not in self._said:
            self._said[replica] = self._dispatcher.heard(replica, now)
        return self._said[replica]

    async def _exchange(self, connection: EngineConnection | None, relay: Relay, call: Call, job: Job) -> None:
        """Wait for the answer; without a connection that it was asked on, ask on a new one. A kept connection that the
        engine had closed meanwhile is replaced once, at no one's cost."""
        kept = connection is not None
        while True:
            if connection is None:
                connection = await self._pool.connect(job.replica.address, tls=job.replica.tls)
                if connection.rtt_s:
                    self._dispatcher.observe_rtt(job.replica.node, connection.rtt_s)
                relay.attach(connection)
                connection.send(*self._request(call, job, relay.attempt), relay)
            try:
                await relay.done
            finally:
                answered = connection.answered
                relay.detach()
                self._pool.release(connection)
            if not kept or answered or relay.attempt.code is not Code.ENGINE_BROKE:
                return
            connection, kept = None, False
            relay.again()

    def _request(self, call: Call, job: Job, attempt: Attempt) -> tuple[bytes, bytes]:
        """Head and body."""
        body = job.body()
        head = _HEAD % (
            job.path.encode(),
            job.replica.address.encode(),
            len(body),
            call.request_id.encode(),
            format_traceparent(call.trace_id, attempt.span_id, sampled=call.sampled),
            self._authorization,
            b"tracestate: %b\r\n" % call.tracestate.encode("latin-1") if call.tracestate else b"",
        )
        return head, body

    def _settle(self, relay: Relay, job: Job, flight: Flight) -> None:
        attempt = relay.attempt
        attempt.events = relay.events
        attempt.impatient = impatient(relay, job)
        attempt.usage = used = job.editor.cost() or usage_of(relay)
        flight.end(
            Ending.CANCELLED if attempt.impatient else _ENDINGS.get(attempt.code, _FAILED),
            attempt.ended,
            prompt_tokens=used.prompt_tokens if used else 0,
            cached_tokens=used.cached_tokens if used else -1,
            output_tokens=used.output_tokens if used else relay.events,
        )


def impatient(relay: Relay, job: Job) -> bool:
    """Given up for the client's own limit, where the policy would have waited: clients must not eject replicas."""
    if relay.attempt.code not in _LATE:
        return False
    own_s, policy_s = job.silence_limits_s(relay.attempt)
    return own_s < min(policy_s, relay.attempt.ended - relay.quiet_since)


def usage_of(relay: Relay) -> Usage | None:
    """As the engine reported it."""
    if relay.usage:
        return read_usage(relay.usage)
    try:
        return whole.usage(relay.answer)
    except msgspec.DecodeError:
        return None

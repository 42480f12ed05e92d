"""One try of a request on one replica: connection, request, relay, and the guards that count it.

Whatever ends it (the answer, an error, a silent engine, a client that left), the flight is ended, the connection is
given back or closed, and the attempt says what happened.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import msgspec

from router.call import Attempt, Call, Usage
from router.core.errors import Code
from router.core.events import Cut
from router.core.model import Decision, Dispatcher, Ending, Flight
from router.downstream.stream import ClientStream
from router.relay import Limits, Relay
from router.settings import RouterSettings
from router.tracecontext import format_traceparent
from router.upstream.pool import ConnectFailed, EnginePool
from wire.records import ModelPolicy, Replica

_ENDINGS = {
    Code.OK: Ending.COMPLETE,
    Code.CLIENT_GONE: Ending.CANCELLED,
    Code.ENGINE_ABORTED: Ending.CANCELLED,
    Code.TOTAL_TIMEOUT: Ending.CANCELLED,
    Code.DRAINING: Ending.CANCELLED,
    Code.ENGINE_REJECTED: Ending.REJECTED,
    Code.ENGINE_BUSY: Ending.REFUSED,
}


class Job(msgspec.Struct, kw_only=True):
    """What one attempt is to do."""

    decision: Decision
    replica: Replica
    policy: ModelPolicy
    kind: str
    path: str
    body: bytes
    editor: Cut
    choices: int


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _EngineUsage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _WholeAnswer(msgspec.Struct):
    usage: _EngineUsage | None = None


_decode_usage = msgspec.json.Decoder(_EngineUsage).decode
_decode_answer = msgspec.json.Decoder(_WholeAnswer).decode


class Attempts:
    def __init__(self, pool: EnginePool, dispatcher: Dispatcher, settings: RouterSettings, *, rng: Random) -> None:
        self._pool = pool
        self._dispatcher = dispatcher
        self._settings = settings
        self._rng = rng
        self._clock = asyncio.get_running_loop().time
        key_file = settings.engine_api_key_file
        key = Path(key_file).read_bytes().strip() if key_file else b""
        self._authorization = b"authorization: Bearer %b\r\n" % key if key else b""
        self.active: set[Relay] = set()
        """What the sweep looks at."""

    async def run(self, call: Call, client: ClientStream, job: Job) -> Relay:
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
        flight = self._dispatcher.begin(job.decision, call.shape, started)
        relay = self._relay(call, client, job, attempt, flight)
        self.active.add(relay)
        try:
            await self._exchange(relay, job, self._head(call, job, attempt))
        except ConnectFailed as error:
            relay.stop(Code.ENGINE_UNREACHABLE, str(error))
        except asyncio.CancelledError:
            relay.stop(Code.CLIENT_GONE)
            raise
        finally:
            self.active.discard(relay)
            self._settle(call, relay, flight)
        return relay

    def end_all(self) -> None:
        """The router leaves and the limit is over: every answer still under way ends now."""
        for relay in list(self.active):
            relay.stop(Code.DRAINING, "this router is shutting down")

    def _relay(self, call: Call, client: ClientStream, job: Job, attempt: Attempt, flight: Flight) -> Relay:
        def start() -> None:
            flight.first_token(attempt.first_token)
            call.first_token = call.first_token or attempt.first_token
            if not client.started:
                call.status = 200
                client.start(200, stream_headers(call))

        limits = Limits(
            first_token_s=job.policy.first_token_limit_s,
            between_tokens_s=job.policy.between_tokens_limit_s,
            total_until=call.arrived + job.policy.total_limit_s,
            answer_bytes=self._settings.answer_limit_bytes,
            event_bytes=self._settings.event_limit_bytes,
        )
        return Relay(
            attempt,
            client,
            editor=job.editor,
            choices=job.choices,
            on_start=start,
            on_progress=lambda tokens, now: flight.progress(tokens, now),
            limits=limits,
        )

    async def _exchange(self, relay: Relay, job: Job, head: bytes) -> None:
        """Send and wait. A kept connection that the engine had closed meanwhile is replaced once, at no one's cost."""
        address = job.replica.address
        connection = self._pool.idle(address)
        kept = connection is not None
        while True:
            if connection is None:
                connection = await self._pool.connect(address, tls=job.replica.tls)
            relay.attach(connection)
            try:
                connection.send(head, job.body, relay)
                await relay.done
            finally:
                answered = connection.answered
                self._pool.release(connection)
            if not kept or answered or relay.attempt.code is not Code.ENGINE_BROKE:
                return
            connection, kept = None, False
            relay.again()

    def _head(self, call: Call, job: Job, attempt: Attempt) -> bytes:
        lines = [
            b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\n"
            % (job.path.encode(), job.replica.address.encode()),
            b"content-length: %d\r\nx-request-id: %b\r\n" % (len(job.body), call.request_id.encode()),
            b"traceparent: %b\r\n" % format_traceparent(call.trace_id, attempt.span_id, sampled=call.sampled),
            self._authorization,
        ]
        if call.tracestate:
            lines.append(b"tracestate: %b\r\n" % call.tracestate.encode("latin-1"))
        lines.append(b"\r\n")
        return b"".join(lines)

    def _settle(self, call: Call, relay: Relay, flight: Flight) -> None:
        attempt = relay.attempt
        used = usage_of(relay)
        attempt.delivered_tokens = used.output_tokens
        attempt.uncounted = used.source != "engine"
        ending = _ENDINGS.get(attempt.code, Ending.FAILED)
        flight.end(
            ending,
            attempt.ended,
            prompt_tokens=used.prompt_tokens,
            cached_tokens=used.cached_tokens if used.source == "engine" else -1,
            output_tokens=used.output_tokens,
        )
        call.usage = used


def usage_of(relay: Relay) -> Usage:
    """As the engine reported it, else as delivered: an event of a stream is about a token (see core/events.py)."""
    try:
        if relay.usage:
            engine: _EngineUsage | None = _decode_usage(relay.usage)
        else:
            engine = _decode_answer(relay.answer).usage if relay.answer else None
    except msgspec.DecodeError:
        engine = None
    if engine is None:
        return Usage(output_tokens=relay.events, source="counted" if relay.events else "none")
    details = engine.prompt_tokens_details
    return Usage(
        prompt_tokens=engine.prompt_tokens,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        output_tokens=engine.completion_tokens or 0,
        source="engine",
    )


def stream_headers(call: Call) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-request-id", call.request_id.encode()),
        *explanation(call),
    ]


def explanation(call: Call) -> list[tuple[bytes, bytes]]:
    """`x-switchyard-decision`, for who asked with `x-switchyard-explain`."""
    if not call.explain or not call.attempts:
        return []
    last = call.attempts[-1]
    said = (
        f"replica={last.replica.replica}; policy={last.decision.policy}; "
        f"expected_ttft_ms={last.decision.expected_ttft_ms:.1f}; attempt={len(call.attempts)}"
    )
    return [(b"x-switchyard-decision", said.encode("latin-1", "replace"))]

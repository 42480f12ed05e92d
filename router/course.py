"""One attempt while it runs: what its relay tells goes to the flight that counts it, to its race and to the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from router.call import Call, served_model
from router.core import stall
from router.core.model import Flight
from router.core.stall import Heard, Sign
from router.downstream.stream import Outlet
from router.resume import WholeLeg

if TYPE_CHECKING:
    from router.job import Job
    from router.relay import Relay


class Course:
    """What a relay calls `Course` too. One small object per open answer, in place of a closure for each question."""

    __slots__ = ("_call", "_client", "_elsewhere", "_heard", "_job", "_on_change", "flight")

    flight: Flight
    """Known once the request was sent, before anything can come back."""

    def __init__(
        self,
        call: Call,
        client: Outlet,
        job: Job,
        on_change: Callable[[], None],
        heard: Callable[[str, float], Heard | None],
        elsewhere: Callable[[Call], bool],
    ) -> None:
        self._call = call
        self._client = client
        self._job = job
        self._on_change = on_change
        self._heard = heard
        self._elsewhere = elsewhere

    def starts(self, relay: Relay) -> None:
        call, client, job = self._call, self._client, self._job
        if job.rival is not None:
            job.rival.leads()
            relay.lead()
        call.first_token = call.first_token or relay.attempt.first_token
        if not client.started:
            call.status, call.story = 200, job.story
            client.start(200, stream_headers(call))

    def started(self, relay: Relay) -> None:
        self.flight.first_token(relay.attempt.first_token)
        self._on_change()

    def progressed(self, tokens: int, now: float) -> None:
        self.flight.progress(tokens, now)

    def limits(self, relay: Relay) -> tuple[float, float]:
        job = self._job
        patience, policy = job.patience, job.policy
        first_s = patience.first_token_until - relay.attempt.started
        limits_s = (patience.between_tokens_s, policy.between_tokens_limit_s, policy.first_token_limit_s)
        until = min(self._call.arrived + policy.total_limit_s, patience.total_until)
        return until, min(stall.LEAST_S, first_s, *limits_s)

    def patience_s(self, relay: Relay, now: float) -> float:
        """With a silent engine; no less than the policy's where giving up could only end the answer."""
        job = self._job
        cap_s = min(job.silence_limits_s(relay.attempt))
        silent_s = now - relay.quiet_since
        if silent_s <= stall.LEAST_S or silent_s > cap_s:
            return cap_s
        sign = stall.sign(self._heard(job.replica.replica, now), generation=job.replica.generation, silent_s=silent_s)
        if not relay.attempt.first_token:
            expected_s = 0.001 * job.decision.expected_p90_ms
            shows = not isinstance(job.editor, WholeLeg)
            limit_s = stall.first_limit_s(sign, expected_s=expected_s, cap_s=cap_s, streams=shows)
            given_up = silent_s > limit_s and (sign is Sign.GONE or self._elsewhere(self._call))
            return limit_s if given_up else cap_s
        limit_s = stall.stream_limit_s(sign, interval_s=relay.interval_s, cap_s=cap_s, named=job.replica.token_ids)
        return limit_s if silent_s > limit_s and job.movable() else cap_s


def stream_headers(call: Call) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-request-id", call.request_id.encode()),
        *explanation(call),
    ]


def explanation(call: Call) -> list[tuple[bytes, bytes]]:
    """`x-switchyard-model` where another model answers, `x-switchyard-decision` for who sent `x-switchyard-explain`."""
    instead = served_model(call)
    found = [(b"x-switchyard-model", instead.encode("latin-1", "replace"))] if instead else []
    if not call.explain or not call.attempts:
        return found
    last = call.attempts[-1]
    said = (
        f"replica={last.replica.replica}; policy={last.decision.policy}; "
        f"expected_ttft_ms={last.decision.expected_ttft_ms:.1f}; attempt={len(call.attempts)}"
    )
    return [*found, (b"x-switchyard-decision", said.encode("latin-1", "replace"))]

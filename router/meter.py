"""Exactly one usage record per request, whatever became of it, in the journal before the request's last byte."""

from __future__ import annotations

from router.call import Attempt, Call, served_model
from router.journal import Journal
from wire.usage import AttemptUsage, UsageRecord, encode_line


class Meter:
    def __init__(self, journal: Journal, *, region: str, router: str) -> None:
        self._journal = journal
        self._region = region
        self._router = router

    def record(self, call: Call) -> None:
        self._journal.append(encode_line(self._usage(call)))

    def _usage(self, call: Call) -> UsageRecord:
        used = call.usage
        return UsageRecord(
            # The span id is drawn per request and router: unique even where a client reuses its request id.
            event_id=f"{call.trace_id:032x}-{call.span_id:016x}",
            request_id=call.request_id,
            region=self._region,
            router=self._router,
            tenant=call.tenant,
            key=call.key_label,
            model=call.model,
            endpoint=call.endpoint,
            stream=call.asked is not None and call.asked.streams,
            arrived_unix_ns=call.arrived_unix_ns,
            duration_s=_to_us(call.ended - call.arrived),
            ttft_s=_to_us(call.first_token - call.arrived) if call.first_token else None,
            held_s=_to_us(call.held_s),
            served_model=served_model(call),
            queue_wait_s=_to_us(call.queue_wait_s),
            code=call.code,
            status=call.status,
            prompt_tokens=used.prompt_tokens if used else 0,
            cached_tokens=max(0, used.cached_tokens) if used else 0,
            output_tokens=used.output_tokens if used else 0,
            token_source=used.source if used else "none",
            attempts=[_attempt(call, attempt) for attempt in call.attempts],
        )


def _attempt(call: Call, attempt: Attempt) -> AttemptUsage:
    return AttemptUsage(
        replica=attempt.replica.replica,
        node=attempt.replica.node,
        generation=attempt.replica.generation,
        kind=attempt.kind,
        code=attempt.code,
        started_s=_to_us(attempt.started - call.arrived),
        duration_s=_to_us(attempt.ended - attempt.started),
        prompt_tokens=attempt.usage.prompt_tokens if attempt.usage else 0,
        output_tokens=attempt.usage.output_tokens if attempt.usage else attempt.events,
    )


def _to_us(seconds: float) -> float:
    """To the microsecond, of what is not negative. `round` goes by way of text: five were 4 % of a plain request."""
    return int(1e6 * seconds + 0.5) / 1e6

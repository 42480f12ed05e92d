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
            duration_s=round(call.ended - call.arrived, 6),
            ttft_s=round(call.first_token - call.arrived, 6) if call.first_token else None,
            held_s=round(call.held_s, 6),
            served_model=served_model(call),
            queue_wait_s=round(call.queue_wait_s, 6),
            code=call.code,
            status=call.status,
            prompt_tokens=call.usage.prompt_tokens if call.usage else 0,
            cached_tokens=max(0, call.usage.cached_tokens) if call.usage else 0,
            output_tokens=call.usage.output_tokens if call.usage else 0,
            token_source=call.usage.source if call.usage else "none",
            attempts=[_attempt(call, attempt) for attempt in call.attempts],
        )


def _attempt(call: Call, attempt: Attempt) -> AttemptUsage:
    return AttemptUsage(
        replica=attempt.replica.replica,
        node=attempt.replica.node,
        generation=attempt.replica.generation,
        kind=attempt.kind,
        code=attempt.code,
        started_s=round(attempt.started - call.arrived, 6),
        duration_s=round(attempt.ended - attempt.started, 6),
        prompt_tokens=attempt.usage.prompt_tokens if attempt.usage else 0,
        output_tokens=attempt.usage.output_tokens if attempt.usage else attempt.events,
    )

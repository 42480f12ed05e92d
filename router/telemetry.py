"""Spans: one server span per request and one client span per attempt, through the OpenTelemetry SDK.

The walk notes facts in the `Call`; spans are made from them once, when the request is over. So a request that is not
traced costs nothing, and the choice can keep every error, every retry and every slow request, whatever the ratio.
Ids are ours from the start, because engines are told their parent (`traceparent`) before there is a span.

Attributes: OpenTelemetry's GenAI conventions (status: development), and `switchyard.*` where they have no word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.util.types import AttributeValue

from router.call import Attempt, Call, Return, served_model
from router.core.errors import Cause, Code, row

OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
_NOT_THE_CLIENTS = (Cause.UPSTREAM, Cause.US)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("switchyard.router")


class Tracer:
    """Makes and exports the spans of finished requests."""

    def __init__(self, processor: SpanProcessor, *, resource: Mapping[str, str], slow_s: float) -> None:
        self._processor = processor
        self._resource = Resource.create(dict(resource))
        self._slow_s = slow_s
        self.spans = 0

    def finish(self, call: Call) -> None:
        if not (call.sampled or self._remarkable(call)):
            return
        state = TraceState.from_header([call.tracestate]) if call.tracestate else None
        parent = _context(call.trace_id, call.parent_span_id, state, remote=True) if call.parent_span_id else None
        server = _context(call.trace_id, call.span_id, state)
        for attempt in call.attempts:
            self._export(
                name=_name(call),
                context=_context(call.trace_id, attempt.span_id, state),
                parent=server,
                kind=SpanKind.CLIENT,
                attributes=_attempt_attributes(call, attempt),
                code=attempt.code,
                times=(_wall(call, attempt.started), _wall(call, attempt.ended)),
            )
        self._export(
            name=_name(call),
            context=server,
            parent=parent,
            kind=SpanKind.SERVER,
            attributes=_call_attributes(call),
            code=call.code,
            times=(call.arrived_unix_ns, _wall(call, call.ended)),
            events=[_return_event(call, back) for back in call.returns],
        )

    def close(self) -> None:
        """Send what is left; the exporter's own time limit applies."""
        self._processor.shutdown()

    def _remarkable(self, call: Call) -> bool:
        return (
            len(call.attempts) > 1
            or row(call.code).cause in _NOT_THE_CLIENTS
            or call.ended - call.arrived > self._slow_s
        )

    def _export(
        self,
        *,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: dict[str, AttributeValue],
        code: Code,
        times: tuple[int, int],
        events: Sequence[Event] = (),
    ) -> None:
        failed = row(code).cause in _NOT_THE_CLIENTS
        if code is not Code.OK:
            attributes["error.type"] = code.value
        self._processor.on_end(
            ReadableSpan(
                name=name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                events=events,
                kind=kind,
                instrumentation_scope=_SCOPE,
                status=Status(StatusCode.ERROR, code.value) if failed else Status(StatusCode.UNSET),
                start_time=times[0],
                end_time=times[1],
            )
        )
        self.spans += 1


def otlp_tracer(endpoint: str, *, resource: Mapping[str, str], slow_s: float) -> Tracer:
    """A tracer that sends batches to an OTLP/HTTP receiver from a thread of its own."""
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
    return Tracer(BatchSpanProcessor(exporter), resource=resource, slow_s=slow_s)


def _context(trace_id: int, span_id: int, state: TraceState | None, *, remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=remote, trace_flags=_SAMPLED, trace_state=state)


def _wall(call: Call, at: float) -> int:
    """A loop time as unix nanoseconds: durations come from the monotonic clock, so a clock step cannot bend them."""
    return call.arrived_unix_ns + int((at - call.arrived) * 1e9)


def _return_event(call: Call, back: Return) -> Event:
    facts = {"switchyard.absent_s": back.absent_s, "switchyard.event": back.event}
    return Event("client came back", facts, _wall(call, back.at))


def _name(call: Call) -> str:
    return f"{OPERATIONS[call.endpoint]} {call.model}".rstrip()


def _call_attributes(call: Call) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": OPERATIONS[call.endpoint],
        "gen_ai.provider.name": "vllm",
        "http.request.method": "POST",
        "http.route": call.path,
        "http.response.status_code": call.status,
        "switchyard.request.id": call.request_id,
        "switchyard.tenant": call.tenant,
        "switchyard.outcome": call.code.value,
        "switchyard.attempts": len(call.attempts),
        "switchyard.held_s": call.held_s,
        "switchyard.queue_wait_s": call.queue_wait_s,
    }
    if call.asked is not None:
        attributes |= _asked_attributes(call)
    if instead := served_model(call):
        attributes["gen_ai.response.model"] = instead
    if call.usage is not None:
        attributes["gen_ai.usage.input_tokens"] = call.usage.prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = call.usage.output_tokens
        attributes["gen_ai.usage.cache_read.input_tokens"] = max(0, call.usage.cached_tokens)
        attributes["switchyard.usage.source"] = call.usage.source.value
    if call.first_token:
        attributes["gen_ai.response.time_to_first_chunk"] = call.first_token - call.arrived
    return attributes


def _asked_attributes(call: Call) -> dict[str, AttributeValue]:
    asked = call.asked
    assert asked is not None
    wanted = {
        "gen_ai.request.model": call.model or None,
        "gen_ai.request.stream": asked.streams,
        "gen_ai.request.max_tokens": asked.limit,
        "gen_ai.request.temperature": asked.params.temperature,
        "gen_ai.request.seed": asked.seed,
        "gen_ai.request.choice.count": asked.params.n,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _attempt_attributes(call: Call, attempt: Attempt) -> dict[str, AttributeValue]:
    host, _, port = attempt.replica.address.rpartition(":")
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": OPERATIONS[call.endpoint],
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": attempt.replica.model,
        "server.address": host,
        "server.port": int(port),
        "http.response.status_code": attempt.status,
        "switchyard.attempt.kind": attempt.kind,
        "switchyard.attempt.outcome": attempt.code.value,
        "switchyard.replica": attempt.replica.replica,
        "switchyard.node": attempt.replica.node,
        "switchyard.generation": attempt.replica.generation,
        "switchyard.policy": attempt.decision.policy,
        "switchyard.expected_ttft_ms": attempt.decision.expected_ttft_ms,
        "switchyard.attempt.events": attempt.events,
    }
    if attempt.first_token:
        attributes["gen_ai.response.time_to_first_chunk"] = attempt.first_token - attempt.started
    return attributes

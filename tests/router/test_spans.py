"""Spans of routed requests, as a real OTLP/HTTP receiver gets them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.router.harness import Exchange, event, plays, router_with
from tests.router.test_kept import Gated, connect, keeping, unheard


class Receiver:
    """An OTLP/HTTP endpoint on a real socket; `spans` is what arrived."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                body = await reader.readexactly(int(fields["content-length"]))
                if fields.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        self.spans.extend(scope.spans)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    received = Receiver()
    server = await asyncio.start_server(received.handle, "127.0.0.1", 0)
    received.port = server.sockets[0].getsockname()[1]
    yield received
    server.close()


def attributes(span: Span) -> dict[str, object]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


async def test_a_routed_request_is_a_server_span_under_the_callers_and_a_client_span_under_it() -> None:
    async with receiver() as otlp:
        async with router_with(plays, otlp_endpoint=f"http://127.0.0.1:{otlp.port}") as (router, engines):
            await router.chat(headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}, max_tokens=7)
            told = engines[0].exchanges[0].header("traceparent")
        server, client = sorted(otlp.spans, key=lambda s: s.kind)
        assert (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT) == (server.kind, client.kind)
        assert (TRACE, PARENT) == (server.trace_id.hex(), server.parent_span_id.hex())
        assert (server.span_id, f"00-{TRACE}-{client.span_id.hex()}-01") == (client.parent_span_id, told)
        assert "chat tiny" == server.name
        seen = attributes(server)
        assert ("chat", "tiny", 7, 5, 3) == tuple(
            seen[name]
            for name in (
                "gen_ai.operation.name",
                "gen_ai.request.model",
                "gen_ai.request.max_tokens",
                "gen_ai.usage.input_tokens",
                "gen_ai.usage.output_tokens",
            )
        )
        assert server.start_time_unix_nano <= client.start_time_unix_nano <= client.end_time_unix_nano
        assert client.end_time_unix_nano <= server.end_time_unix_nano


async def test_a_retried_request_has_a_client_span_per_attempt_and_is_kept_whatever_the_ratio() -> None:
    async def errs(exchange: Exchange) -> None:
        await exchange.answer(500, b'{"error":{"message":"boom","type":"x","param":null,"code":500}}')

    async with receiver() as otlp:
        endpoint = f"http://127.0.0.1:{otlp.port}"
        async with router_with(errs, plays, otlp_endpoint=endpoint, trace_ratio=0.0) as (router, engines):
            while not engines[0].exchanges:
                await router.chat()
        clients = [attributes(s) for s in otlp.spans if s.kind == Span.SPAN_KIND_CLIENT]
        assert [("first", "engine_error"), ("retry", "ok")] == [
            (c["switchyard.attempt.kind"], c["switchyard.attempt.outcome"]) for c in clients
        ]
        assert 1 == len([s for s in otlp.spans if s.kind == Span.SPAN_KIND_SERVER])


async def test_no_prompt_and_no_answer_is_in_any_span() -> None:
    async def says(exchange: Exchange) -> None:
        await exchange.stream([event('{"error": {"message": "secret answer", "code": 500}}')])

    async with receiver() as otlp:
        async with router_with(plays, says, otlp_endpoint=f"http://127.0.0.1:{otlp.port}", trace_ratio=1.0) as (
            router,
            _,
        ):
            for _ in range(4):
                await router.chat(messages=[{"role": "user", "content": "secret question"}])
        text = "".join(str(s) for s in otlp.spans)
        assert "secret" not in text
        assert "one" not in [v for s in otlp.spans for v in attributes(s).values()]


async def test_the_return_of_a_client_is_an_event_of_its_requests_span() -> None:
    engine = Gated(first=2)
    async with receiver() as otlp:
        async with keeping(engine, otlp_endpoint=f"http://127.0.0.1:{otlp.port}", trace_ratio=1.0) as (router, _):
            first = await (await connect(router)).read(2)
            first.leave()
            await unheard(router)
            engine.go.set()
            await (await connect(router, f"{first.handle}/1")).rest()
        (server,) = [span for span in otlp.spans if span.kind == Span.SPAN_KIND_SERVER]
        (back,) = server.events
        assert ("client came back", 1) == (back.name, back.attributes[1].value.int_value)

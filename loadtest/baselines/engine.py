"""The cheapest engine that speaks vLLM's wire format: what every contestant of the comparison has behind it.

It decides nothing and batches nothing: each stream emits one event per interval on a schedule of its own (or as fast
as it is read, when the interval is 0), and every event carries the time it was written, `@` and 19 digits of
CLOCK_MONOTONIC in ns. `POST /pace {"interval_s": 0.02, "first_s": 0}` changes the pace of streams that begin later.
It also takes spans at /v1/traces and forgets them. The simulated engine of the node agent has batching, faults and
metrics, and costs more per event.

    python -m loadtest.baselines.engine --ports 9001,9002
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
import time
from functools import partial
from typing import Any, cast

import httptools
import msgspec
import uvloop

from router.listen import hands

_CHUNK = (
    b'data: {"id":"chatcmpl-00000000000000000000000000000000","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"%b","choices":[{"index":0,"delta":{"content":"@%019d"},"logprobs":null,"finish_reason":%b,'
    b'"token_ids":%b}]%b}\n\n'
)
_PROMPT_IDS = b',"prompt_token_ids":[%b]' % b",".join(b"%d" % token for token in range(1000, 1016))
_USAGE = (
    b'data: {"id":"chatcmpl-00000000000000000000000000000000","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"%b","choices":[],"usage":{"prompt_tokens":16,"total_tokens":%d,"completion_tokens":%d}}\n\n'
)
_ANSWER = (
    b'{"id":"chatcmpl-00000000000000000000000000000000","object":"chat.completion","created":1700000000,"model":"%b",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"%b"},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":16,"total_tokens":%d,"completion_tokens":%d}}'
)
_HEAD = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: %b\r\n"
_STREAM_HEAD = _HEAD % b"text/event-stream; charset=utf-8" + b"transfer-encoding: chunked\r\n\r\n"
_METRICS = '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{model_name="{}"}} {}\n'


class Pace(msgspec.Struct, forbid_unknown_fields=True):
    interval_s: float = 0.02
    """Between the events of one stream; 0: as fast as they are read."""
    first_s: float = 0.0
    """Before the first event."""


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Request(msgspec.Struct):
    stream: bool = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False


class Engine:
    """What all connections of one port share."""

    def __init__(self, model: str) -> None:
        self.model = model.encode()
        self.pace = Pace()
        self.running = 0
        self.loop = asyncio.get_running_loop()
        self.requests = msgspec.json.Decoder(Request)


class Serving(asyncio.Protocol):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parser: Any = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._timer: asyncio.Handle | None = None
        self._blocked = False
        self._left = 0
        self._tokens = 0
        self._ids = self._prompt_ids = b""
        self._interval_s = 0.0
        self._next = 0.0
        self._usage = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._url = url
        self._body = []

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        path = self._url.partition(b"?")[0]
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if path in (b"/v1/chat/completions", b"/v1/completions"):
            self._generate(self._engine.requests.decode(body))
        elif path == b"/pace":
            self._engine.pace = msgspec.json.decode(body, type=Pace)
            self._answer(b"{}")
        elif path in (b"/health", b"/health_generate", b"/ping"):
            self._answer(b"")
        elif path == b"/v1/models":
            card = {"id": self._engine.model.decode(), "object": "model", "owned_by": "vllm", "max_model_len": 131072}
            self._answer(msgspec.json.encode({"object": "list", "data": [card]}))
        elif path == b"/metrics":
            text = _METRICS.format(self._engine.model.decode(), self._engine.running)
            self._answer(text.encode(), kind=b"text/plain; version=0.0.4")
        elif path == b"/v1/traces":
            self._answer(b"{}")
        else:
            self._answer(b'{"detail":"Not Found"}', status=b"404 Not Found")

    def _answer(self, body: bytes, *, kind: bytes = b"application/json", status: bytes = b"200 OK") -> None:
        head = (_HEAD % kind).replace(b"200 OK", status, 1)
        self._transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)

    def _generate(self, request: Request) -> None:
        engine = self._engine
        self._tokens = request.max_completion_tokens or request.max_tokens or 16
        if not request.stream:
            text = b"tok " * self._tokens
            self._answer(_ANSWER % (engine.model, text, 16 + self._tokens, self._tokens))
            return
        engine.running += 1
        self._left = self._tokens
        self._usage = request.stream_options is not None and request.stream_options.include_usage
        self._ids, self._prompt_ids = (b"[1808]", _PROMPT_IDS) if request.return_token_ids else (b"null", b"")
        self._interval_s = engine.pace.interval_s
        self._next = engine.loop.time() + engine.pace.first_s
        self._transport.write(_STREAM_HEAD)
        if engine.pace.first_s:
            self._timer = engine.loop.call_at(self._next, self._emit)
        else:
            self._emit()

    def _emit(self) -> None:
        self._left -= 1
        reason = b"null" if self._left else b'"length"'
        event = _CHUNK % (self._engine.model, time.monotonic_ns(), reason, self._ids, self._prompt_ids)
        self._prompt_ids = b""
        if not self._left:
            if self._usage:
                event += _USAGE % (self._engine.model, 16 + self._tokens, self._tokens)
            event += b"data: [DONE]\n\n"
            self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event))
            self._stop()
            return
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        if self._interval_s:
            self._next += self._interval_s
            self._timer = self._engine.loop.call_at(self._next, self._emit)
        elif not self._blocked:
            self._timer = self._engine.loop.call_soon(self._emit)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._left = 0
        self._engine.running -= 1

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        if self._left and not self._interval_s:
            self._timer = self._engine.loop.call_soon(self._emit)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._left:
            self._stop()


async def serve(ports: list[int], model: str) -> None:
    loop = asyncio.get_running_loop()
    numbers: list[int] = []
    for port in ports:
        engine, listener = Engine(model), socket.create_server(("127.0.0.1", port), backlog=8192)
        listener.setblocking(False)
        numbers.append(listener.getsockname()[1])
        for hand in hands(listener):
            await loop.create_server(partial(Serving, engine), sock=hand, backlog=8192)
    gc.freeze()
    print("ready " + ",".join(map(str, numbers)), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ports", default="0,0", help="comma separated; 0 asks the kernel")
    parser.add_argument("--model", default="bench")
    args = parser.parse_args()
    uvloop.run(serve([int(port) for port in args.ports.split(",")], args.model))


if __name__ == "__main__":
    main()

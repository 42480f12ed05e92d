"""The endpoints that answer with a model's output: reads a request, checks it in vLLM's order and words, meets its
fault, and starts a call on the replica. Chat, text completions and embeddings.
"""

from __future__ import annotations

import asyncio
import base64
import math
import struct

import msgspec

from node_agent.engines.simulated import wire
from node_agent.engines.simulated.answer import Answer
from node_agent.engines.simulated.batching import Sequence
from node_agent.engines.simulated.calls import Call, ChatShape, Choice, CompletionShape, Shape
from node_agent.engines.simulated.faults import AT_START, Fault, Kind
from node_agent.engines.simulated.http import Connection, Request
from node_agent.engines.simulated.replica import Replica, Stats
from node_agent.engines.simulated.requests import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    OutOfVocabulary,
    Refused,
    bad_request,
    error_body,
    prompts_of,
    read,
    sampling,
    too_long,
    unknown_model,
)
from node_agent.engines.simulated.script import scripted
from node_agent.engines.simulated.tokens import Model, chance, chat_ids, decode, prefix_hashes

_BUSY = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
)
_EMBEDDING_SIZE = 64


class Generating:
    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    def chat(self, request: Request, connection: Connection) -> None:
        if (fault := self._fault_at_start(connection)) is _ANSWERED:
            return
        body = read(ChatBody, request.body)
        model = self._model(body.model)
        if not body.messages:
            raise bad_request("Cannot apply chat template to an empty conversation. Provide at least one message.")
        if body.continue_final_message and body.add_generation_prompt:
            raise bad_request(
                "continue_final_message and add_generation_prompt are not compatible. Set one of them to false."
            )
        ids = rendered(body)
        head, usage = self._head("chatcmpl-", request, body, model, body.top_logprobs if body.logprobs else None)
        shape = ChatShape(
            head,
            usage,
            streamed=bool(body.stream),
            prompt_text=decode(ids) if body.return_prompt_text else None,
            echo=body.messages[-1].text() if body.echo and body.messages[-1].role == "assistant" else "",
        )
        self._start(connection, body, [ids], head, usage, shape, fault)

    def completions(self, request: Request, connection: Connection) -> None:
        if (fault := self._fault_at_start(connection)) is _ANSWERED:
            return
        body = read(CompletionBody, request.body)
        model = self._model(body.model)
        try:
            prompts = body.prompts()
        except OutOfVocabulary as refusal:
            if not body.stream:
                raise
            self.replica.stats.refused += 1
            connection.begin_stream()
            connection.send(b"data: " + refusal.body + b"\n\n" + wire.DONE)
            connection.end_stream()
            return
        head, usage = self._head("cmpl-", request, body, model, body.logprobs)
        n = body.n or 1
        echo = {i: decode(prompts[i // n]) for i in range(n * len(prompts))} if body.echo else {}
        shape = CompletionShape(head, usage, streamed=bool(body.stream), echo=echo)
        self._start(connection, body, prompts, head, usage, shape, fault)

    def _start(
        self,
        connection: Connection,
        body: ChatBody | CompletionBody,
        prompts: list[list[int]],
        head: wire.Head,
        usage: wire.Usage,
        shape: Shape,
        fault: Fault | None,
    ) -> None:
        replica = self.replica
        if replica.draining:
            raise Refused(500, "cannot schedule new futures after shutdown", "InternalServerError")
        choices = [
            choice
            for at, ids in enumerate(prompts)
            for choice in self._choices(body, ids, head, first=at * (body.n or 1))
        ]
        if replica.queue_is_full(len(choices)):
            replica.metrics.rejected += 1
            raise Refused(503, _BUSY, "Service Unavailable")
        usage.prompt = sum(map(len, prompts))
        call = Call(
            connection,
            choices,
            shape,
            usage,
            id_=head.id,
            fault=fault,
            arrived=replica.now(),
            over=replica.over,
            interval=replica.config.stream_interval,
        )
        if fault is not None and fault.kind is Kind.DELAY:
            replica.submit(call, extra_s=fault.delay_s)
        else:
            replica.submit(call)

    def _choices(self, body: ChatBody | CompletionBody, ids: list[int], head: wire.Head, *, first: int) -> list[Choice]:
        replica, profile = self.replica, self.replica.config.profile
        limits = sampling(body, len(ids), profile.max_model_len)
        state, blocks = prefix_hashes(ids, replica.salt_of(head.model), profile.block_tokens)
        base = None if body.greedy else body.seed if body.seed is not None else replica.rng.getrandbits(48)
        choices = []
        for i in range(body.n or 1):
            seed = None if base is None else base + i * 1_000_003
            script, tool = scripted(body, chance(state, seed))
            own = list(blocks)
            model = Model(
                state,
                ids,
                blocks=own,
                block=profile.block_tokens,
                seed=seed,
                penalised=body.penalised,
                script=script,
            )
            sequence = Sequence(
                id=f"{head.id}-{first + i}",
                prompt_tokens=len(ids),
                max_tokens=limits.max_tokens,
                blocks=own,
                adapter=head.model if head.model in replica.adapters else "",
            )
            choices.append(Choice(first + i, ids, Answer(model, limits), sequence, tool))
        return choices

    def _model(self, name: str | None) -> str:
        known = [self.replica.config.model, *self.replica.adapters]
        if name is None or name in known:
            return name or known[0]
        raise unknown_model(name, known)

    def _head(
        self, prefix: str, request: Request, body: ChatBody | CompletionBody, model: str, logprobs: int | None
    ) -> tuple[wire.Head, wire.Usage]:
        given = body.request_id or request.headers.get(b"x-request-id", b"").decode("latin-1")
        id_ = prefix + (given or f"{self.replica.rng.getrandbits(128):032x}")
        if id_ in self.replica.calls:
            id_ += f"-{self.replica.rng.getrandbits(32):08x}"
        head = wire.Head(
            id=id_,
            created=self.replica.unix_s(),
            model=model,
            ids=bool(body.return_token_ids),
            logprobs=logprobs,
            usage=body.usage,
            running_usage=body.running_usage,
            block=self.replica.config.profile.block_tokens,
        )
        return head, wire.Usage()

    def _fault_at_start(self, connection: Connection) -> Fault | None:
        """The fault this request meets; _ANSWERED when that was all."""
        replica = self.replica
        fault = replica.faults.draw(replica.now())
        if fault is None or fault.kind not in AT_START or fault.kind is Kind.DELAY:
            return fault
        replica.stats.refused += 1
        match fault.kind:
            case Kind.HANG:
                connection.on_gone = lambda: None
            case Kind.EMPTY:
                connection.begin_stream()
                connection.send(wire.DONE)
                connection.end_stream()
            case Kind.CONTEXT_LENGTH:
                limit = replica.config.profile.max_model_len
                raise too_long(limit + 1, limit, exact=False)
            case _:
                headers = {} if fault.retry_after_s is None else {"retry_after": str(fault.retry_after_s)}
                connection.respond(fault.status, _error_of(fault.status), **headers)
        return _ANSWERED

    def embeddings(self, request: Request, connection: Connection) -> None:
        if self._fault_at_start(connection) is _ANSWERED:
            return
        body = read(EmbeddingBody, request.body)
        model = self._model(body.model)
        prompts = prompts_of(body.input)
        limit = self.replica.config.profile.max_model_len
        for ids in prompts:
            if len(ids) > limit:
                raise too_long(len(ids), limit, exact=True)
        tokens = sum(map(len, prompts))
        self.replica.stats.accepted += 1
        self.replica.stats.active += 1
        duration_s = tokens * self.replica.config.profile.prefill_token_ms / 1000 * self.replica.config.time_scale
        given = request.headers.get(b"x-request-id", b"").decode("latin-1")
        answer = wire.json(
            {
                "id": "embd-" + (given or f"{self.replica.rng.getrandbits(128):032x}"),
                "object": "list",
                "created": self.replica.unix_s(),
                "model": model,
                "data": [
                    {"index": i, "object": "embedding", "embedding": _embedding(ids, body)}
                    for i, ids in enumerate(prompts)
                ],
                "usage": {
                    "prompt_tokens": tokens,
                    "total_tokens": tokens,
                    "completion_tokens": 0,
                    "prompt_tokens_details": None,
                },
            }
        )
        stats = self.replica.stats
        timer = self.replica.loop.call_later(duration_s, _embedded, stats, connection, answer)
        connection.on_gone = lambda: _unembedded(stats, timer)


_ANSWERED = Fault(kind=Kind.ERROR, id="answered")
"""Stands for: there is nothing left to do for this request."""

_ERRORS = {
    429: ("Too many requests, please try again later.", "RateLimitError"),
    500: ("Internal server error", "InternalServerError"),
    503: (_BUSY, "Service Unavailable"),
}


def rendered(body: ChatBody) -> list[int]:
    """Token ids of a chat prompt; tools are a message of their own before all others."""
    messages = [(m.role, m.text()) for m in body.messages]
    if body.tools:
        messages.insert(0, ("tools", msgspec.json.encode(body.tools).decode()))
    return chat_ids(messages, generation_prompt=body.add_generation_prompt, open_last=body.continue_final_message)


def _error_of(status: int) -> bytes:
    message, type_ = _ERRORS.get(status, (f"simulated error {status}", "SimulatedError"))
    return error_body(message, type_, status)


def _embedded(stats: Stats, connection: Connection, answer: bytes) -> None:
    stats.active -= 1
    stats.finished += 1
    connection.respond(200, answer)


def _unembedded(stats: Stats, timer: asyncio.TimerHandle) -> None:
    timer.cancel()
    stats.active -= 1
    stats.aborted += 1


def _embedding(ids: list[int], body: EmbeddingBody) -> list[float] | str:
    """A unit vector of the bag of tokens: texts that share words are near each other."""
    size = body.dimensions or _EMBEDDING_SIZE
    vector = [0.0] * size
    for token in ids:
        state = prefix_hashes([token], 1, 16)[0]
        vector[(state >> 20) % size] += 1.0 if state >> 63 else -1.0
    length = math.sqrt(sum(v * v for v in vector)) or 1.0
    vector = [v / length for v in vector]
    if body.encoding_format == "base64":
        return base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
    return vector

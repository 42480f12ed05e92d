"""What each path answers: reads the request, checks it in vLLM's order and words, and starts calls on the replica."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import msgspec

from node_agent.engines.simulated import wire
from node_agent.engines.simulated.answer import Answer
from node_agent.engines.simulated.batching import Sequence
from node_agent.engines.simulated.calls import Call, ChatShape, Choice, CompletionShape, Shape
from node_agent.engines.simulated.faults import AT_START, Fault, Kind
from node_agent.engines.simulated.http import Connection, Request, Service
from node_agent.engines.simulated.replica import Replica
from node_agent.engines.simulated.requests import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
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
from node_agent.engines.simulated.tokens import Model, chance, chat_ids, decode, encode, prefix_hashes

Handler = Callable[[Request, Connection], None]

VERSION = "0.32.0"
_BUSY = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
)
_EMBEDDING_SIZE = 64


class Routes(Service):
    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        generating = {
            "/v1/chat/completions": {"POST": self.chat},
            "/v1/completions": {"POST": self.completions},
            "/v1/load_lora_adapter": {"POST": self.load_adapter},
            "/v1/unload_lora_adapter": {"POST": self.unload_adapter},
        }
        pooling = {"/v1/embeddings": {"POST": self.embeddings}}
        self.table: dict[str, dict[str, Handler]] = {
            **(pooling if replica.config.task == "embed" else generating),
            "/health": {"GET": self.health},
            "/ping": {"GET": self.health, "POST": self.health},
            "/load": {"GET": self.load},
            "/version": {"GET": self.version},
            "/metrics": {"GET": self.metrics},
            "/v1/models": {"GET": self.models},
            "/tokenize": {"POST": self.tokenize},
            "/detokenize": {"POST": self.detokenize},
            "/sleep": {"POST": self.sleep},
            "/wake_up": {"POST": self.wake_up},
            "/is_sleeping": {"GET": self.is_sleeping},
            "/sim/faults": {"GET": self.list_faults, "POST": self.add_fault, "DELETE": self.clear_faults},
            "/sim/stats": {"GET": self.stats},
        }

    # Service

    def handle(self, request: Request, connection: Connection) -> None:
        methods = self.table.get(request.path)
        if methods is None and request.path.startswith("/sim/faults/"):
            methods = {"DELETE": self.remove_fault}
        if methods is None:
            connection.respond(404, b'{"detail":"Not Found"}')
            return
        handler = methods.get(request.method)
        if handler is None:
            connection.respond(405, b'{"detail":"Method Not Allowed"}', allow=", ".join(methods))
            return
        try:
            handler(request, connection)
        except Refused as refusal:
            if request.path.startswith("/v1/"):
                self.replica.stats.refused += 1
            connection.respond(refusal.status, refusal.body)

    def opened(self, connection: Connection) -> None:
        self.replica.connections.add(connection)
        self.replica.stats.connections += 1

    def closed(self, connection: Connection) -> None:
        self.replica.connections.discard(connection)
        self.replica.stats.connections -= 1

    # Generating

    def chat(self, request: Request, connection: Connection) -> None:
        if (fault := self._fault_at_start(connection)) is _ANSWERED:
            return
        body = read(ChatBody, request.body)
        model = self._model(body.model)
        if not body.messages:
            raise bad_request("messages must not be empty", "messages")
        if body.continue_final_message and body.add_generation_prompt:
            raise bad_request(
                "continue_final_message and add_generation_prompt are not compatible. Set one of them to false."
            )
        messages = [(m.role, m.text()) for m in body.messages]
        if body.tools:
            tools = msgspec.json.encode(body.tools).decode()
            messages.insert(0, ("tools", tools))
        ids = chat_ids(messages, generation_prompt=body.add_generation_prompt, open_last=body.continue_final_message)
        head, usage = self._head("chatcmpl-", request, body, model, body.top_logprobs if body.logprobs else None)
        shape = ChatShape(
            head,
            usage,
            streamed=bool(body.stream),
            prompt_text=decode(ids) if body.return_prompt_text else None,
            echo=messages[-1][1] if body.echo and messages[-1][0] == "assistant" else "",
        )
        self._start(connection, body, [ids], head, usage, shape, fault)

    def completions(self, request: Request, connection: Connection) -> None:
        if (fault := self._fault_at_start(connection)) is _ANSWERED:
            return
        body = read(CompletionBody, request.body)
        model = self._model(body.model)
        prompts = body.prompts()
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
            connection, choices, shape, usage, id_=head.id, fault=fault, arrived=replica.now(), over=replica.over
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
            model = Model(state, ids[-1], seed=seed, penalised=body.penalised, script=script)
            sequence = Sequence(
                id=f"{head.id}-{first + i}",
                prompt_tokens=len(ids),
                max_tokens=limits.max_tokens,
                blocks=blocks,
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
                connection.begin_stream({})
                connection.send(wire.DONE)
                connection.end_stream()
            case Kind.CONTEXT_LENGTH:
                limit = replica.config.profile.max_model_len
                raise too_long(limit + 1, limit)
            case _:
                headers = {} if fault.retry_after_s is None else {"retry_after": str(fault.retry_after_s)}
                connection.respond(fault.status, _error_of(fault.status), **headers)
        return _ANSWERED

    # Pooling

    def embeddings(self, request: Request, connection: Connection) -> None:
        if self._fault_at_start(connection) is _ANSWERED:
            return
        body = read(EmbeddingBody, request.body)
        model = self._model(body.model)
        prompts = prompts_of(body.input)
        limit = self.replica.config.profile.max_model_len
        for ids in prompts:
            if len(ids) > limit:
                raise too_long(len(ids), limit)
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
                    {"index": i, "object": "embedding", "embedding": _embedding(ids, body.dimensions)}
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
        timer = self.replica.loop.call_later(duration_s, self._embedded, connection, answer)
        connection.on_gone = lambda: self._unembedded(timer)

    def _embedded(self, connection: Connection, answer: bytes) -> None:
        self.replica.stats.active -= 1
        self.replica.stats.finished += 1
        connection.respond(200, answer)

    def _unembedded(self, timer: Any) -> None:
        timer.cancel()
        self.replica.stats.active -= 1
        self.replica.stats.aborted += 1

    # About the engine

    def health(self, request: Request, connection: Connection) -> None:
        connection.respond(200, b"", content_type="")

    def load(self, request: Request, connection: Connection) -> None:
        connection.respond(200, wire.json({"server_load": self.replica.stats.active}))

    def version(self, request: Request, connection: Connection) -> None:
        connection.respond(200, wire.json({"version": VERSION}))

    def metrics(self, request: Request, connection: Connection) -> None:
        r = self.replica
        adapters = {}
        if r.adapters:
            running = ",".join(sorted(r.batch.adapters))
            waiting = ",".join(sorted({s.adapter for s in r.batch.waiting if s.adapter}))
            adapters = {"max_lora": "8", "running_lora_adapters": running, "waiting_lora_adapters": waiting}
        page = r.metrics.render(
            model=r.config.model,
            counters=r.counters(),
            profile=r.config.profile,
            sleep_level=r.sleep_level,
            adapters=adapters,
        )
        connection.respond(200, page, content_type="text/plain; version=1.0.0; charset=utf-8")

    def models(self, request: Request, connection: Connection) -> None:
        r = self.replica
        base = _card(r.config.model, r.config.model, None, r.config.profile.max_model_len, r.started_unix_s)
        adapters = [_card(name, path, r.config.model, None, r.started_unix_s) for name, path in r.adapters.items()]
        connection.respond(200, wire.json({"object": "list", "data": [base, *adapters]}))

    def tokenize(self, request: Request, connection: Connection) -> None:
        body = _object(request.body)
        if "messages" in body:
            chat = read(ChatBody, request.body)
            ids = chat_ids(
                ((m.role, m.text()) for m in chat.messages),
                generation_prompt=chat.add_generation_prompt,
                open_last=chat.continue_final_message,
            )
        else:
            ids = encode(str(body.get("prompt", "")))
        strings = [wire.token_text(t) for t in ids] if body.get("return_token_strs") else None
        limit = self.replica.config.profile.max_model_len
        answer = {"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": strings}
        connection.respond(200, wire.json(answer))

    def detokenize(self, request: Request, connection: Connection) -> None:
        tokens = _object(request.body).get("tokens") or []
        prompt = decode(prompts_of(tokens)[0]) if tokens else ""
        connection.respond(200, wire.json({"prompt": prompt}))

    # Sleep and adapters

    def sleep(self, request: Request, connection: Connection) -> None:
        level = int(request.query.get("level", "1"))
        self.replica.sleep(level, request.query.get("mode", "abort"))
        connection.respond(200, wire.json({"status": "sleeping", "level": level}))

    def wake_up(self, request: Request, connection: Connection) -> None:
        self.replica.loop.call_later(self.replica.config.wake_time_s, self._woken, connection)

    def _woken(self, connection: Connection) -> None:
        self.replica.wake()
        connection.respond(200, wire.json({"status": "awake", "tags": None}))

    def is_sleeping(self, request: Request, connection: Connection) -> None:
        connection.respond(200, wire.json({"is_sleeping": self.replica.sleep_level is not None}))

    def load_adapter(self, request: Request, connection: Connection) -> None:
        body = _object(request.body)
        name, path = str(body.get("lora_name") or ""), str(body.get("lora_path") or "")
        if not name or not path:
            raise Refused(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        if path.startswith("/nonexist"):
            raise Refused(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        if name in self.replica.adapters and not body.get("load_inplace"):
            raise Refused(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        self.replica.loop.call_later(self.replica.config.lora_load_time_s, self._adapter_loaded, connection, name, path)

    def _adapter_loaded(self, connection: Connection, name: str, path: str) -> None:
        self.replica.adapters[name] = path
        done = f"Success: LoRA adapter '{name}' added successfully."
        connection.respond(200, done.encode(), content_type="text/plain; charset=utf-8")

    def unload_adapter(self, request: Request, connection: Connection) -> None:
        name = str(_object(request.body).get("lora_name") or "")
        if self.replica.adapters.pop(name, None) is None:
            raise Refused(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        done = f"Success: LoRA adapter '{name}' removed successfully."
        connection.respond(200, done.encode(), content_type="text/plain; charset=utf-8")

    # Admin calls of the simulation

    def list_faults(self, request: Request, connection: Connection) -> None:
        connection.respond(200, wire.json({"faults": self.replica.faults.active(self.replica.now())}))

    def add_fault(self, request: Request, connection: Connection) -> None:
        try:
            fault = msgspec.json.decode(request.body, type=Fault)
            self.replica.faults.add(fault, self.replica.now())
        except (ValueError, msgspec.DecodeError) as error:
            raise bad_request(str(error)) from error
        connection.respond(200, wire.json(fault))
        if fault.kind is Kind.REFUSE:
            self.replica.down(fault.duration_s)
        elif fault.kind is Kind.CRASH:
            self.replica.crash(fault.duration_s or 0.0)
        elif fault.kind is Kind.EXIT:
            self.replica.loop.call_later(0.01, os._exit, fault.status & 255)

    def clear_faults(self, request: Request, connection: Connection) -> None:
        self.replica.faults.clear()
        connection.respond(200, b'{"faults":[]}')

    def remove_fault(self, request: Request, connection: Connection) -> None:
        if not self.replica.faults.remove(request.path.rsplit("/", 1)[1]):
            raise Refused(404, "no such fault", "NotFoundError")
        self.list_faults(request, connection)

    def stats(self, request: Request, connection: Connection) -> None:
        r = self.replica
        running = sum(call.usage.completion for call in r.calls.values())
        stats = msgspec.to_builtins(r.stats) | {"tokens_sent": r.stats.tokens_sent + running}
        connection.respond(200, wire.json(stats | {"engine": r.batch.counters()}))


_ANSWERED = Fault(kind=Kind.ERROR, id="answered")
"""Stands for: there is nothing left to do for this request."""

_ERRORS = {
    429: ("Too many requests, please try again later.", "RateLimitError"),
    500: ("Internal server error", "InternalServerError"),
    503: (_BUSY, "Service Unavailable"),
}


def _error_of(status: int) -> bytes:
    message, type_ = _ERRORS.get(status, (f"simulated error {status}", "SimulatedError"))
    return error_body(message, type_, status)


def _object(body: bytes) -> dict[str, Any]:
    try:
        decoded: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise bad_request(f"JSON decode error: {error}") from error
    return decoded


def _card(name: str, root: str, parent: str | None, limit: int | None, created: int) -> dict[str, Any]:
    permission = {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": limit,
        "permission": [permission],
    }


def _embedding(ids: list[int], dimensions: int | None) -> list[float]:
    """A unit vector of the bag of tokens: texts that share words are near each other."""
    size = dimensions or _EMBEDDING_SIZE
    vector = [0.0] * size
    for token in ids:
        state = prefix_hashes([token], 1, 16)[0]
        vector[state % size] += 1.0 if state >> 63 else -1.0
    length = math.sqrt(sum(v * v for v in vector)) or 1.0
    return [v / length for v in vector]

"""Which path leads where, and the endpoints that tell about the engine or change its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from node_agent.engines.simulated import wire
from node_agent.engines.simulated.admin import Admin
from node_agent.engines.simulated.generate import Generating, rendered
from node_agent.engines.simulated.http import Connection, Request, Service
from node_agent.engines.simulated.replica import Replica
from node_agent.engines.simulated.requests import ChatBody, Refused, bad_request, prompts_of, read
from node_agent.engines.simulated.tokens import decode, encode

Handler = Callable[[Request, Connection], None]

VERSION = "0.32.0"
_WAIT_POLL_S = 0.01


class Routes(Service):
    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        generating, admin = Generating(replica), Admin(replica)
        self.admin = admin
        answers = {
            "/v1/chat/completions": {"POST": generating.chat},
            "/v1/completions": {"POST": generating.completions},
            "/v1/load_lora_adapter": {"POST": self.load_adapter},
            "/v1/unload_lora_adapter": {"POST": self.unload_adapter},
        }
        pooling = {"/v1/embeddings": {"POST": generating.embeddings}}
        self.table: dict[str, dict[str, Handler]] = {
            **(pooling if replica.config.task == "embed" else answers),
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
            "/sim/faults": {"GET": admin.list_faults, "POST": admin.add_fault, "DELETE": admin.clear_faults},
            "/sim/stats": {"GET": admin.stats},
        }

    # Service

    def handle(self, request: Request, connection: Connection) -> None:
        if self.replica.config.request_id_headers:
            given = request.headers.get(b"x-request-id", b"").decode("latin-1")
            connection.headers = {"x-request-id": given or f"{self.replica.rng.getrandbits(128):032x}"}
        methods = self.table.get(request.path)
        if methods is None and request.path.startswith("/sim/faults/"):
            methods = {"DELETE": self.admin.remove_fault}
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

    def answered(self, request: Request, status: int) -> None:
        counts = self.replica.metrics.http
        key = (request.path if request.path in self.table else "none", request.method, f"{status // 100}xx")
        counts[key] = counts.get(key, 0) + 1

    def opened(self, connection: Connection) -> None:
        self.replica.connections.add(connection)
        self.replica.stats.connections += 1

    def closed(self, connection: Connection) -> None:
        self.replica.connections.discard(connection)
        self.replica.stats.connections -= 1

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
        chat = "messages" in body
        ids = rendered(read(ChatBody, request.body)) if chat else encode(str(body.get("prompt", "")))
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
        level, mode = request.query.get("level", "1"), request.query.get("mode", "abort")
        if level not in ("0", "1", "2") or mode not in ("abort", "wait", "keep"):
            raise bad_request("level must be 0, 1 or 2, and mode abort, wait or keep")
        self._sleep(connection, int(level), mode)

    def _sleep(self, connection: Connection, level: int, mode: str) -> None:
        if mode == "wait" and self.replica.calls:
            self.replica.loop.call_later(_WAIT_POLL_S, self._sleep, connection, level, mode)
            return
        self.replica.sleep(level, mode)
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

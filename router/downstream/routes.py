"""What the router answers to: OpenAI's paths, probes, metrics, and a 404 of OpenAI's shape for the rest of /v1.

The three model endpoints are plain ASGI applications in front of Starlette, so that the walk can take the short way to
the client; everything else is Starlette's routes and ordinary handlers.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.call import Call
from router.core import limits
from router.core.difference import Difference, Question
from router.core.errors import Code, Refused, error_json, row
from router.core.policies import DEFAULT
from router.core.whatif import question
from router.downstream.auth import authenticate, may_use, unknown_model
from router.downstream.cards import ModelCard, ModelList
from router.downstream.direct import EXTENSION
from router.downstream.stream import AsgiStream, ClientStream, Message, Named, Receive, Send, named
from router.fleet.view import View
from router.tracecontext import Sampling, TraceContext

ENDPOINTS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
"""Taken over from the client; anything else is replaced, because the id goes into headers, logs and records."""

_RARE = limits.HEADERS | {b"tracestate", b"x-switchyard-explain", b"x-switchyard-fallback", b"last-event-id"}

_OFF = frozenset({b"", b"0", b"false", b"no", b"off"})

Walk = Callable[[Call, ClientStream], Coroutine[Any, Any, None]]


class ModelEndpoint:
    """One of the paths that reach engines: makes the call of a request and hands it to the walk."""

    def __init__(
        self,
        path: str,
        walk: Walk,
        back: Walk,
        *,
        clock: Callable[[], float],
        sampling: Sampling,
        rng: Random,
    ) -> None:
        """`back` serves clients that come back to a stream of theirs."""
        self._path = path
        self._endpoint = ENDPOINTS[path]
        self._walk = walk
        self._back = back
        self._clock = clock
        self._sampling = sampling
        self._rng = rng

    def __call__(self, scope: Message, receive: Receive, send: Send) -> Awaitable[None]:
        """Through ASGI."""
        extension = scope.get("extensions", {}).get(EXTENSION)
        stream: ClientStream = extension["stream"] if extension else AsgiStream(scope, receive, send)
        return self.serve(named(scope["headers"]), stream)

    def serve(self, headers: Named, stream: ClientStream) -> Coroutine[Any, Any, None]:
        call = self._call(headers)
        walk = self._back if call.last_event_id else self._walk
        return stream.serve(walk, call, stream)

    def _call(self, headers: Named) -> Call:
        get = headers.get
        request_id = get(b"x-request-id", b"")
        now = self._clock()
        trace = TraceContext(get(b"traceparent", b""), sampling=self._sampling, rng=self._rng, now=now)
        call = Call(
            request_id=request_id.decode() if REQUEST_ID.fullmatch(request_id) else self._new_id(),
            endpoint=self._endpoint,
            path=self._path,
            headers=headers,
            arrived=now,
            arrived_unix_ns=time.time_ns(),
            trace_id=trace.trace_id,
            span_id=trace.span_id,
            parent_span_id=trace.parent_span_id,
            sampled=trace.sampled,
        )
        if not _RARE.isdisjoint(headers):
            call.tracestate = get(b"tracestate", b"")[:512].decode("latin-1")
            call.explain = switched_on(headers, b"x-switchyard-explain")
            call.fallback = switched_on(headers, b"x-switchyard-fallback")
            call.last_event_id = get(b"last-event-id", b"")
            call.limits = {name: headers[name] for name in limits.HEADERS if name in headers}
        return call

    def _new_id(self) -> str:
        return f"req-{self._rng.getrandbits(96):024x}"


def switched_on(headers: Named, name: bytes) -> bool:
    return headers.get(name, b"").strip().lower() not in _OFF


class Pages:
    """The handlers that are not on the hot path."""

    def __init__(
        self,
        *,
        view: Callable[[], View],
        ready: Callable[[], str],
        metrics: Callable[[], Awaitable[bytes]],
        why: Callable[[str, str], Awaitable[str | None]],
        whatif: Callable[[Question, str], Awaitable[Difference]],
    ) -> None:
        self._view = view
        self._ready = ready
        self._metrics = metrics
        self._why = why
        self._whatif = whatif

    async def models(self, request: Request) -> Response:
        try:
            tenant, _ = authenticate(named(request.scope["headers"]), self._view(), now_unix_ns=time.time_ns())
        except Refused as refused:
            return refusal(refused, request)
        allowed = sorted(name for name in self._view().models if may_use(tenant, name))
        return json(ModelList(data=[ModelCard(id=name) for name in allowed]))

    async def model(self, request: Request) -> Response:
        try:
            tenant, _ = authenticate(named(request.scope["headers"]), self._view(), now_unix_ns=time.time_ns())
        except Refused as refused:
            return refusal(refused, request)
        name = request.path_params["model"]
        if name not in self._view().models or not may_use(tenant, name):
            return refusal(Refused(Code.MODEL_UNKNOWN, unknown_model(name), param="model"), request)
        return json(ModelCard(id=name))

    async def health(self, request: Request) -> Response:
        """The process lives. It says nothing about engines: /ready does."""
        return json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """503 with the reason while this router should get no traffic."""
        reason = self._ready()
        return json({"status": "ready"}) if not reason else json({"status": "not ready", "reason": reason}, status=503)

    async def metrics(self, request: Request) -> Response:
        return Response(await self._metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def why(self, request: Request) -> Response:
        """The story of one of the tenant's own recent requests, as text."""
        try:
            tenant, _ = authenticate(named(request.scope["headers"]), self._view(), now_unix_ns=time.time_ns())
        except Refused as refused:
            return refusal(refused, request)
        story = await self._why(request.path_params["request_id"], tenant.tenant)
        if story is None:
            return refusal(
                Refused(Code.NOT_FOUND, "This router remembers no such request of yours that has ended."), request
            )
        return Response(story, media_type="text/plain; charset=utf-8")

    async def whatif(self, request: Request) -> Response:
        """The tenant's own recent requests under `policy`, with constants `set=name=value`; of one `model`, or all."""
        try:
            tenant, _ = authenticate(named(request.scope["headers"]), self._view(), now_unix_ns=time.time_ns())
            asked = read_question(request)
        except Refused as refused:
            return refusal(refused, request)
        return json(await self._whatif(asked, tenant.tenant))

    async def unknown(self, request: Request) -> Response:
        served = ", ".join((*ENDPOINTS, "/v1/models"))
        message = f"There is no {request.method} {request.url.path} here; there are {served}."
        return refusal(Refused(Code.NOT_FOUND, message), request)


class Front:
    """The ASGI application: requests that reach engines go straight to their endpoint, all others through Starlette,
    whose chain of middleware would cost a plain request more than its validation."""

    def __init__(self, endpoints: dict[str, ModelEndpoint], others: Starlette) -> None:
        self.direct = {path.encode(): endpoint for path, endpoint in endpoints.items()}
        """What a server may call without ASGI, by the target of the request."""
        self._endpoints = endpoints
        self._others = others

    def __call__(self, scope: Message, receive: Receive, send: Send) -> Awaitable[None]:
        endpoint = self._endpoints.get(scope["path"]) if scope["method"] == "POST" else None
        return (endpoint or self._others)(scope, receive, send)


def make_app(endpoints: dict[str, ModelEndpoint], pages: Pages) -> Front:
    async def wrong_method(request: Request, error: Exception) -> Response:
        allowed = (getattr(error, "headers", None) or {}).get("Allow", "")
        message = f"{request.method} is not allowed for {request.url.path}; use {allowed}."
        response = refusal(Refused(Code.METHOD_NOT_ALLOWED, message), request)
        response.headers["allow"] = allowed
        return response

    async def not_found(request: Request, error: Exception) -> Response:
        return await pages.unknown(request)

    async def broken(request: Request, error: Exception) -> Response:
        return refusal(Refused(Code.INTERNAL, "Something broke in the router; its log says what."), request)

    routes = [Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()]
    routes += [
        Route("/v1/models", pages.models, methods=["GET"]),
        Route("/v1/models/{model:path}", pages.model, methods=["GET"]),
        Route("/health", pages.health, methods=["GET"]),
        Route("/ready", pages.ready, methods=["GET"]),
        Route("/metrics", pages.metrics, methods=["GET"]),
        Route("/admin/why/{request_id}", pages.why, methods=["GET"]),
        Route("/admin/whatif", pages.whatif, methods=["GET"]),
    ]
    others = Starlette(routes=routes, exception_handlers={404: not_found, 405: wrong_method, 500: broken})
    return Front(endpoints, others)


def read_question(request: Request) -> Question:
    """Raises Refused with 400 for a policy or a constant that is none."""
    asked = request.query_params
    constants = [(name, value) for name, _, value in (text.partition("=") for text in asked.getlist("set"))]
    try:
        return question(asked.get("policy", DEFAULT), constants, model=asked.get("model", ""))
    except ValueError as error:
        raise Refused(Code.INVALID_REQUEST, f"{error}.") from error


def json(value: object, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


def refusal(refused: Refused, request: Request) -> Response:
    headers = {"retry-after": str(int(refused.retry_after_s) or 1)} if refused.retry_after_s else {}
    named = request.headers.get("x-request-id", "")
    headers["x-request-id"] = named if REQUEST_ID.fullmatch(named.encode()) else str(uuid.uuid4())
    body = error_json(refused.code, refused.message, param=refused.param)
    return Response(body, status_code=row(refused.code).status, headers=headers, media_type="application/json")

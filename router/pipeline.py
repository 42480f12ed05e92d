"""The life of one request, top to bottom.

    accept, authenticate, validate, (pick, admit, relay, fail over), meter, end, trace

What is admitted hangs on what is expected, so the gate is asked once a replica is picked (placement.py). Each step
either goes on or raises `Refused` with a code of the error table. A client that leaves cancels the walk wherever it is;
every guard on the way then lets go, and the request is still metered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from math import inf

from router.answer import Answer, refused_answer
from router.call import Call
from router.core import limits
from router.core.asked import Asked, Unreadable, read
from router.core.errors import Code, Refused
from router.core.model import Shape
from router.downstream.auth import authenticate, may_use, unknown_model
from router.downstream.stream import LET_GO, ClientStream, Outlet
from router.failover import Failover
from router.fleet.view import GONE_S, View
from router.kept.table import KeptStreams
from router.meter import Meter
from router.metrics import Instruments
from router.settings import RouterSettings
from wire.records import Tenant

log = logging.getLogger(__name__)

_LEFT = Answer(code=Code.CLIENT_GONE, status=499)
"""Of a request whose client left before it ended otherwise."""

GONE_RETRY_S = 5.0
"""An agent that lost its lease, or was started again, registers within seconds."""


class Pipeline:
    def __init__(
        self,
        *,
        view: Callable[[], View],
        failover: Failover,
        meter: Meter,
        observers: Sequence[Callable[[Call], None]],
        instruments: Instruments,
        settings: RouterSettings,
        kept: KeptStreams,
    ) -> None:
        self._view = view
        self._failover = failover
        self._meter = meter
        self._observers = observers
        self._instruments = instruments
        self._settings = settings
        self._kept = kept
        self._clock = asyncio.get_running_loop().time

    async def run(self, call: Call, client: ClientStream) -> None:
        """Serve one request and leave exactly one record of it."""
        answer = _LEFT
        self._instruments.open_calls += 1
        try:
            answer = await self._walk(call, client)
        except Refused as refused:
            answer = refused_answer(refused, client)
        except Exception:
            log.exception("request %s broke in the router", call.request_id)
            message = f"Something broke in the router; it is logged under request {call.request_id}."
            answer = refused_answer(Refused(Code.INTERNAL, message), client)
        finally:
            self._close(call, call.kept or client, answer)

    async def _walk(self, call: Call, client: ClientStream) -> Answer:
        tenant = self._authenticate(call)
        body = await client.read_body(self._settings.body_limit_bytes)
        asked = self._validate(call, body, tenant)
        if call.limits:
            call.patience = patience_of(call)
        call.shape = shape_of(call, asked, tenant)
        if call.fallback:
            call.shape.fallback_allowed = self._may_fall_back(call, tenant)
        if tenant.resume_buffer_s > 0.0 and asked.streams:
            return await self._kept.serve(call, client, tenant, self._failover.serve)
        call.headers = LET_GO
        return await self._failover.serve(call, client)

    def _authenticate(self, call: Call) -> Tenant:
        tenant, key = authenticate(call.headers, self._view(), now_unix_ns=time.time_ns())
        call.tenant, call.key_label = tenant.tenant, key.label or key.sha256[:12]
        return tenant

    def _validate(self, call: Call, body: bytes, tenant: Tenant) -> Asked:
        try:
            call.asked = asked = read(call.path, body)
        except Unreadable as error:
            raise Refused(Code.INVALID_REQUEST, f"{error}.", param=error.param or None) from error
        name = asked.params.model
        if not name:
            raise Refused(Code.INVALID_REQUEST, "`model` is missing: name one of GET /v1/models.", param="model")
        if name not in self._view().models:
            raise self._not_there(name, tenant)
        if not may_use(tenant, name):
            raise Refused(Code.MODEL_FORBIDDEN, unknown_model(name), param="model")
        call.model = name
        return asked

    def _not_there(self, name: str, tenant: Tenant) -> Refused:
        at = self._view().gone.get(name)
        if at is None or self._clock() - at > GONE_S or not may_use(tenant, name):
            return Refused(Code.MODEL_UNKNOWN, unknown_model(name), param="model")
        message = f"The last replica of {name!r} left the registry {self._clock() - at:.0f} s ago."
        return Refused(Code.NO_REPLICA, message, retry_after_s=GONE_RETRY_S)

    def _may_fall_back(self, call: Call, tenant: Tenant) -> bool:
        policy = self._view().fleet.models.get(call.model)
        return policy is not None and bool(policy.fallback) and may_use(tenant, policy.fallback)

    def _close(self, call: Call, client: Outlet, answer: Answer) -> None:
        """Meter, then the last bytes, then the trace. Nothing here waits."""
        call.code, call.status, call.message = answer.code, answer.status, answer.message
        call.ended = self._clock()
        self._instruments.open_calls -= 1
        self._instruments.count(call)
        self._meter.record(call)
        answer.finish(call, client)
        for observe in self._observers:
            observe(call)
        if self._settings.log_requests:
            log.info("%s %s %s %s %.3f s", call.request_id, call.path, call.model, call.code, call.ended - call.arrived)


def patience_of(call: Call) -> limits.Patience:
    try:
        return limits.read(call.limits, arrived=call.arrived)
    except limits.BadLimit as error:
        raise Refused(Code.INVALID_REQUEST, f"{error}.", param=error.name) from error


def shape_of(call: Call, asked: Asked, tenant: Tenant) -> Shape:
    params = asked.params
    prompt = params.messages if call.endpoint == "chat" else params.prompt
    return Shape(
        request_id=call.request_id,
        model=call.model,
        tenant=call.tenant,
        prompt=prompt,
        max_tokens=asked.limit or 0,
        choices=asked.choices,
        priority=tenant.priority,
        embedding=call.endpoint == "embeddings",
        deadline=call.patience.first_token_until if call.patience.first_token_until < inf else 0.0,
    )

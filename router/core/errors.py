"""Every way a request can end, in one table: who caused it, what the client sees, whether another replica may be
tried, and whether the replica is to blame.

Codes are few and fixed: they label metrics. Sentences for people go with the `Refused` that carries a code.
"""

from __future__ import annotations

import enum

import msgspec


class Cause(enum.StrEnum):
    CLIENT = "client"
    POLICY = "policy"
    UPSTREAM = "upstream"
    US = "us"
    NONE = "none"


class Code(enum.StrEnum):
    OK = "ok"
    CLIENT_GONE = "client_gone"
    UNAUTHENTICATED = "unauthenticated"
    INVALID_REQUEST = "invalid_request"
    TOO_LARGE = "too_large"
    BODY_TIMEOUT = "body_timeout"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    MODEL_UNKNOWN = "model_unknown"
    MODEL_FORBIDDEN = "model_forbidden"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    QUEUE_TIMEOUT = "queue_timeout"
    NO_REPLICA = "no_replica"
    DRAINING = "draining"
    ENGINE_REJECTED = "engine_rejected"
    ENGINE_BUSY = "engine_busy"
    ENGINE_ERROR = "engine_error"
    ENGINE_UNREACHABLE = "engine_unreachable"
    ENGINE_BROKE = "engine_broke"
    ENGINE_ABORTED = "engine_aborted"
    ENGINE_MALFORMED = "engine_malformed"
    DIVERGED = "diverged"
    MOVED = "moved"
    OUTRUN = "outrun"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"
    STALLED = "stalled"
    TOTAL_TIMEOUT = "total_timeout"
    STREAM_UNKNOWN = "stream_unknown"
    STREAM_GONE = "stream_gone"
    SUPERSEDED = "superseded"
    INTERNAL = "internal"


class Row(msgspec.Struct, frozen=True):
    cause: Cause
    status: int
    """HTTP status when nothing was sent yet; 499 is for records only, nobody is there to read it."""
    type: str
    """`error.type` in OpenAI's words."""
    retry: bool
    """Another replica may be asked."""
    blame: bool
    """Counts against the replica."""


_TABLE: dict[Code, Row] = {
    Code.OK: Row(Cause.NONE, 200, "", False, False),
    Code.CLIENT_GONE: Row(Cause.CLIENT, 499, "client_gone", False, False),
    Code.UNAUTHENTICATED: Row(Cause.CLIENT, 401, "invalid_request_error", False, False),
    Code.INVALID_REQUEST: Row(Cause.CLIENT, 400, "invalid_request_error", False, False),
    Code.TOO_LARGE: Row(Cause.CLIENT, 413, "invalid_request_error", False, False),
    Code.BODY_TIMEOUT: Row(Cause.CLIENT, 408, "invalid_request_error", False, False),
    Code.NOT_FOUND: Row(Cause.CLIENT, 404, "invalid_request_error", False, False),
    Code.METHOD_NOT_ALLOWED: Row(Cause.CLIENT, 405, "invalid_request_error", False, False),
    Code.MODEL_UNKNOWN: Row(Cause.CLIENT, 404, "invalid_request_error", False, False),
    # The same answer as an unknown model: what exists for others is none of the caller's business.
    Code.MODEL_FORBIDDEN: Row(Cause.POLICY, 404, "invalid_request_error", False, False),
    Code.RATE_LIMITED: Row(Cause.POLICY, 429, "rate_limit_error", False, False),
    Code.OVERLOADED: Row(Cause.US, 503, "overloaded_error", False, False),
    Code.QUEUE_TIMEOUT: Row(Cause.US, 503, "overloaded_error", False, False),
    Code.NO_REPLICA: Row(Cause.US, 503, "overloaded_error", False, False),
    Code.DRAINING: Row(Cause.US, 503, "overloaded_error", False, False),
    # The engine's own 4xx: the same body would fail everywhere, so it is passed on as it is.
    Code.ENGINE_REJECTED: Row(Cause.CLIENT, 400, "invalid_request_error", False, False),
    Code.ENGINE_BUSY: Row(Cause.UPSTREAM, 503, "overloaded_error", True, False),
    Code.ENGINE_ERROR: Row(Cause.UPSTREAM, 502, "upstream_error", True, True),
    Code.ENGINE_UNREACHABLE: Row(Cause.UPSTREAM, 502, "upstream_error", True, True),
    Code.ENGINE_BROKE: Row(Cause.UPSTREAM, 502, "upstream_error", True, True),
    # A drain, a sleep command or a restart ended the stream: no fault of the replica's speed or health.
    Code.ENGINE_ABORTED: Row(Cause.UPSTREAM, 502, "upstream_error", True, False),
    Code.ENGINE_MALFORMED: Row(Cause.UPSTREAM, 502, "upstream_error", True, True),
    # A continuation contradicted what the client has: that is chance or another configuration, not ill health.
    Code.DIVERGED: Row(Cause.UPSTREAM, 502, "upstream_error", True, False),
    # The replica drains and the stream goes on elsewhere.
    Code.MOVED: Row(Cause.US, 503, "upstream_error", True, False),
    # Of an attempt only: its rival in a race for the first token was sooner.
    Code.OUTRUN: Row(Cause.US, 499, "outrun", False, False),
    Code.FIRST_TOKEN_TIMEOUT: Row(Cause.UPSTREAM, 504, "timeout_error", True, True),
    Code.STALLED: Row(Cause.UPSTREAM, 504, "timeout_error", True, True),
    Code.TOTAL_TIMEOUT: Row(Cause.POLICY, 504, "timeout_error", False, False),
    # Of a client that wants to come back to a stream: to none of its own, or to a part that is not kept any more.
    Code.STREAM_UNKNOWN: Row(Cause.CLIENT, 404, "invalid_request_error", False, False),
    Code.STREAM_GONE: Row(Cause.CLIENT, 410, "invalid_request_error", False, False),
    # The client came back on another connection, and this one ends.
    Code.SUPERSEDED: Row(Cause.CLIENT, 409, "superseded", False, False),
    Code.INTERNAL: Row(Cause.US, 500, "server_error", False, False),
}


def row(code: Code) -> Row:
    return _TABLE[code]


class Refused(Exception):  # noqa: N818 - a request is refused or broken; it reads as what it is
    """Ends a request with a code and a sentence for people.

    `body` is an engine's own answer to pass on unchanged, with `status`."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float = 0.0,
        status: int = 0,
        body: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.status = status or _TABLE[code].status
        self.body = body


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """The body OpenAI's SDKs read."""

    error: ErrorDetail


_encoder = msgspec.json.Encoder()
# What clients match on, where OpenAI has a code of its own.
_PUBLIC_CODE = {
    Code.UNAUTHENTICATED: "invalid_api_key",
    Code.MODEL_UNKNOWN: "model_not_found",
    Code.MODEL_FORBIDDEN: "model_not_found",
    Code.RATE_LIMITED: "rate_limit_exceeded",
}


def error_json(code: Code, message: str, *, param: str | None = None) -> bytes:
    """`{"error": {...}}` in OpenAI's shape."""
    detail = ErrorDetail(message=message, type=_TABLE[code].type, param=param, code=_PUBLIC_CODE.get(code, code.value))
    return _encoder.encode(ErrorBody(detail))

"""One line of the usage journal: what one request used, whatever became of it. Routers write it, the ledger reads it.

JSON, one record a line. `event_id` is the same however often a line is delivered, so that counting twice is
impossible downstream. No prompt, no answer, no key.
"""

from __future__ import annotations

import msgspec


class AttemptUsage(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What one engine did for the request; the tenant is charged for the request, not for attempts."""

    replica: str
    node: str
    generation: int
    kind: str
    code: str
    started_s: float
    """Since the request arrived."""
    duration_s: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    """Made by this engine for this attempt, dropped repetitions included; events where it reported no usage."""


class UsageRecord(msgspec.Struct, kw_only=True, gc=False):
    event_id: str
    request_id: str
    region: str
    router: str
    tenant: str
    key: str
    """Label or first characters of the key's hash."""
    model: str
    endpoint: str
    stream: bool
    arrived_unix_ns: int
    duration_s: float
    ttft_s: float | None
    held_s: float
    """Waited for the model to be ready."""
    code: str
    status: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    token_source: str
    """engine; counted, from the ids of what was delivered; estimated, without ids; or none: no engine was reached."""
    attempts: list[AttemptUsage]
    served_model: str = ""
    """The model that answered, where policy and client let it be another than `model`."""
    queue_wait_s: float = 0.0
    """Waited in the router while the model's replicas were under pressure."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(UsageRecord)


def encode_line(record: UsageRecord) -> bytes:
    return _encoder.encode(record) + b"\n"


def decode_line(line: bytes) -> UsageRecord:
    """Raises msgspec.DecodeError for a line cut short by a crash."""
    return _decoder.decode(line)

"""What an answer that came whole means, and what it says of its cost."""

from __future__ import annotations

import msgspec

from router.core.errors import Code
from router.core.usage import Usage
from router.core.usage import read as read_usage

_FINE = (Code.OK, "")


class _Answer(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Answer).decode


class _Error(msgspec.Struct):
    message: str = ""


class _ErrorAnswer(msgspec.Struct):
    error: _Error


_decode_error = msgspec.json.Decoder(_ErrorAnswer).decode


def usage(answer: bytes) -> Usage | None:
    """None when there is no answer."""
    return read_usage(bytes(_decode(answer).usage)) if answer else None


def judge(status: int, answer: bytes) -> tuple[Code, str]:
    """What a whole answer means for the request: the engine's success, its client's error, or its own."""
    if status == 200:
        return _FINE
    try:
        detail = _decode_error(answer).error.message
    except msgspec.DecodeError:
        detail = f"status {status}"
    if status in (429, 503):
        return Code.ENGINE_BUSY, detail
    if 400 <= status < 500 and status != 408:
        return Code.ENGINE_REJECTED, detail
    return Code.ENGINE_ERROR, detail


def seconds(value: bytes) -> float:
    """A Retry-After in seconds, 0 when it is absent or a date (engines send seconds)."""
    return float(value) if value.isdigit() else 0.0

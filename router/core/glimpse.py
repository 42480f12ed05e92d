"""Of an event the few members that tell what is to be done with it."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from router.core.chunks import NULL


class Trouble(enum.StrEnum):
    """Why a stream broke, as far as its bytes tell."""

    ERROR = "error"
    """An error event within the stream; vLLM sends one, and then `[DONE]`, when its engine core dies."""
    ABORT = "abort"
    """A choice ended with finish_reason "abort": the engine was told to stop, the answer is not complete."""
    MALFORMED = "malformed"
    """An event whose data is neither JSON of the expected shape nor `[DONE]`."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What `examine` found in a block."""

    good: bytes
    """The events that may go on to the client, up to the first trouble or `[DONE]`, that included."""
    events: int = 0
    """Data events among them other than `[DONE]`: progress. Comments are none."""
    finished: int = 0
    """Choices that ended."""
    usage: bytes = b""
    """The last usage object, as JSON."""
    done: bool = False
    trouble: Trouble | None = None
    detail: str = ""
    """The trouble in the engine's words."""


class _PlainChoice(msgspec.Struct, gc=False):
    finish_reason: None = None
    prompt_token_ids: None = None


class _Plain(msgspec.Struct, gc=False):
    """An event that needs no action is one that decodes into this: the types are the test."""

    choices: tuple[_PlainChoice]
    error: None = None
    usage: None = None
    prompt_token_ids: None = None


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class Event(msgspec.Struct, gc=False):
    type: str = ""
    choices: list[_Choice] | None = None
    error: Any = None
    usage: msgspec.Raw = NULL


class _Fingerprint(msgspec.Struct, gc=False):
    system_fingerprint: str = ""


decode_fingerprint = msgspec.json.Decoder(_Fingerprint).decode
decode_plain = msgspec.json.Decoder(_Plain).decode
decode_event = msgspec.json.Decoder(Event).decode

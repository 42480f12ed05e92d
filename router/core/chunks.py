"""The chunks of OpenAI's two streams as we decode them: only the fields that are read, each once.

Field shapes are vLLM 0.32's, recorded; engines that name no token ids decode too, with less to tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

NULL = msgspec.Raw(b"null")
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class Entry(msgspec.Struct, gc=False):
    """A logprob entry, of which only the number matters."""


class Logprobs(msgspec.Struct, gc=False):
    content: list[Entry] | None = None
    """A chat's."""
    tokens: list[str] | None = None
    """A completion's."""
    text_offset: list[int] | None = None


class Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct, gc=False):
    """A piece of a tool call."""

    index: int = 0
    id: str | None = None
    function: Function | None = None


class Said(msgspec.Struct, gc=False):
    """What a chunk says of one choice."""

    index: int = 0
    text: str | None = None
    delta: dict[str, Any] | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    token_ids: list[TokenId] | None = None
    prompt_token_ids: list[TokenId] | None = None


class Chunk(msgspec.Struct, gc=False):
    id: str = ""
    object: str = ""
    created: int = 0
    model: str = ""
    choices: list[Said] = []
    usage: msgspec.Raw = NULL
    system_fingerprint: str | None = None
    prompt_token_ids: list[TokenId] | None = None


class _Word(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    content: Annotated[str, msgspec.Meta(min_length=1)]


class CleanSaid(msgspec.Struct, gc=False):
    """The usual case, one id and its whole text and nothing else: as in events.py, the types are the test."""

    index: int
    token_ids: tuple[TokenId]
    delta: _Word | None = None
    text: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    logprobs: None = None
    finish_reason: None = None
    prompt_token_ids: None = None


class _CleanChunk(msgspec.Struct, gc=False):
    choices: tuple[CleanSaid]
    error: None = None
    usage: None = None
    prompt_token_ids: None = None


decode_chunk = msgspec.json.Decoder(Chunk).decode
decode_clean = msgspec.json.Decoder(_CleanChunk).decode


def tokens_of(said: Said) -> int:
    """Tokens in what a chunk says of a choice, by its ids; without ids an event that carries text counts as one."""
    if said.token_ids:
        return len(said.token_ids)
    return int(bool(said.text or any(value for name, value in (said.delta or {}).items() if name != "role")))


def texts_of(name: str, value: Any) -> Iterator[tuple[str, str | None]]:
    """The texts in a field of a delta, each with the channel it belongs to; None for what is no text.

    Raises msgspec.ValidationError for calls of another shape."""
    if isinstance(value, str):
        yield name, value
    elif name == "tool_calls":
        for call in calls_of(value):
            yield from _texts_of_function(f"{name}.{call.index}", call.function)
    elif name == "function_call":
        yield from _texts_of_function(name, msgspec.convert(value, Function | None))
    elif value is not None:
        yield name, None


def calls_of(value: Any) -> list[Call]:
    """The tool calls of a delta. Raises msgspec.ValidationError for calls of another shape."""
    return msgspec.convert(value or [], list[Call])


def _texts_of_function(channel: str, function: Function | None) -> Iterator[tuple[str, str]]:
    if function is not None:
        yield f"{channel}.name", function.name or ""
        yield f"{channel}.arguments", function.arguments or ""

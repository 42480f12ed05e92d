"""What a request used: what its client is charged, and what each leg cost the engine that ran it.

The two differ when a stream was continued. The client pays the prompt and every delivered token once, as if nothing had
broken; an engine computed the prompt again, and perhaps tokens that were compared and dropped. Pure arithmetic: prices
and the journal are elsewhere.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from router.core.transcript import Transcript


class Source(enum.StrEnum):
    """Who counted."""

    ENGINE = "engine"
    COUNTED = "counted"
    """By us, from the token ids of the prompt and of the delivered events: exact, but blind to cache hits."""
    ESTIMATED = "estimated"
    """By us, without ids: the prompt from its size, output as events that carried text."""


_ENGINE = Source.ENGINE


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    prompt_tokens: int = 0
    cached_tokens: int = -1
    """Of the prompt, found in the engine's prefix cache; -1 when nobody told."""
    output_tokens: int = 0
    reasoning_tokens: int = -1
    """Of the output, spent on reasoning; -1 when nobody told."""
    source: Source = Source.ESTIMATED


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Wire(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


_decode = msgspec.json.Decoder(_Wire).decode


def read(raw: bytes) -> Usage | None:
    """An engine's usage object of a chat or a completion; None for anything else."""
    try:
        wire = _decode(raw)
    except msgspec.DecodeError:
        return None
    cached = wire.prompt_tokens_details.cached_tokens if wire.prompt_tokens_details else None
    thought = wire.completion_tokens_details.reasoning_tokens if wire.completion_tokens_details else None
    return Usage(
        prompt_tokens=wire.prompt_tokens,
        cached_tokens=-1 if cached is None else cached,
        output_tokens=wire.completion_tokens,
        reasoning_tokens=-1 if thought is None else thought,
        source=_ENGINE,
    )


def charged(transcript: Transcript, *, prompt_estimate: int = 0) -> Usage:
    """What the client is charged: the prompt and each delivered token once, whole stream or broken, one leg or many.

    `prompt_estimate` stands in for a prompt that no engine counted."""
    reported = read(transcript.usage)
    if reported is not None:
        return reported
    exact = transcript.names_ids and transcript.prompt_tokens > 0
    return Usage(
        prompt_tokens=transcript.prompt_tokens or prompt_estimate,
        output_tokens=transcript.tokens,
        source=Source.COUNTED if exact else Source.ESTIMATED,
    )


def render(usage: Usage) -> dict[str, Any]:
    """The usage object of OpenAI's shape; details only where somebody told them."""
    shown: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "completion_tokens": usage.output_tokens,
    }
    if usage.cached_tokens >= 0:
        shown["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens >= 0:
        shown["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return shown

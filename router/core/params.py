"""The members of a request's body that are read, by their names in it; asked.py makes a request of them.

Apart from it because a compiled module (hatch_build.py) may define no struct.
"""

from __future__ import annotations

import msgspec

from router.core.chunks import NULL


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Params(msgspec.Struct, kw_only=True, gc=False):
    """The fields we read, by their names in the body. None and JSON null both mean "not given". What is raw is a view
    of the body, no copy."""

    model: str | None = None
    messages: msgspec.Raw = NULL
    prompt: msgspec.Raw = NULL
    stream: bool | None = None
    stream_options: StreamOptions | msgspec.UnsetType | None = msgspec.UNSET
    return_token_ids: bool | msgspec.UnsetType | None = msgspec.UNSET
    seed: int | msgspec.UnsetType | None = msgspec.UNSET
    n: int | None = None
    best_of: int | None = None
    temperature: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    bad_words: list[str] | None = None
    logprobs: int | bool | None = None
    top_logprobs: int | None = None
    echo: bool | None = None
    tools: msgspec.Raw = NULL
    tool_choice: msgspec.Raw = NULL
    functions: msgspec.Raw = NULL
    response_format: msgspec.Raw = NULL
    structured_outputs: msgspec.Raw = NULL


class Usual(Params, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A body with members that are known and no others: the one decode tells that nothing else is in it. Those added
    here are what SDKs send often; a body with other members is decoded once more, as `Params`."""

    top_p: msgspec.Raw = NULL
    top_k: msgspec.Raw = NULL
    min_p: msgspec.Raw = NULL
    repetition_penalty: msgspec.Raw = NULL
    user: msgspec.Raw = NULL
    metadata: msgspec.Raw = NULL
    parallel_tool_calls: msgspec.Raw = NULL
    reasoning_effort: msgspec.Raw = NULL
    chat_template_kwargs: msgspec.Raw = NULL


class Part(msgspec.Struct, gc=False):
    """Of a message's content."""

    type: str = "text"


class Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = NULL
    """No copy: a prompt may be long."""


decode_usual = msgspec.json.Decoder(Usual, strict=False).decode
decode_params = msgspec.json.Decoder(Params, strict=False).decode
decode_messages = msgspec.json.Decoder(list[Message] | None).decode
decode_parts = msgspec.json.Decoder(list[Part | str]).decode

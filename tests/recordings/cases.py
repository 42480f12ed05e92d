"""The requests that are recorded, each with what it shows. Pure data; record.py sends them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a router? Ünïcödé 你好 🙂"},
]
PROMPT = "The life of a request, from the first byte"
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
IDS = {"return_token_ids": True}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "sky": {"enum": ["clear", "overcast"]},
    },
    "required": ["city", "days", "sky"],
    "additionalProperties": False,
}
PARAMETERS = {
    "type": "object",
    "properties": {"unit": {"enum": ["celsius", "fahrenheit"]}, "city": {"enum": ["Zürich", "Reykjavík"]}},
    "required": ["unit", "city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": about, "parameters": PARAMETERS}}
    for name, about in (("get_weather", "The weather of a city"), ("get_forecast", "Its next days"))
]
NAMED = {"type": "function", "function": {"name": "get_forecast"}}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
CJK = "[\\u4e00-\\u4fff🙂-🙏]{12}"  # three or four byte tokens for each character


@dataclass(frozen=True)
class Case:
    name: str
    about: str
    endpoint: str
    fields: Mapping[str, Any]
    tags: tuple[str, ...] = ()
    resume: str = ""
    """`ids`: a continuation by token ids is exact too; `replay`: only the same request again is; empty: neither."""

    def request(self) -> dict[str, Any]:
        asked = {"messages": MESSAGES} if self.endpoint == CHAT else {"prompt": PROMPT}
        return {"model": "tiny", **asked, **self.fields}


def both(name: str, about: str, fields: Mapping[str, Any], **more: Any) -> list[Case]:
    """The same case on both endpoints."""
    return [
        Case(f"chat-{name}", f"Chat: {about}", CHAT, fields, **more),
        Case(f"text-{name}", f"Completions: {about}", TEXT, fields, **more),
    ]


def streams(stop_chat: str, stop_text: str, stop_token: int) -> list[Case]:
    """Streams that end well. The stop strings are cut from the greedy answers, over the seam of two tokens."""
    short = GREEDY | {"max_tokens": 48}
    seeded = {"temperature": 1.0, "top_p": 0.95, "seed": 42, "max_tokens": 48, "ignore_eos": True}
    return [
        *both("greedy-ids", "greedy with token ids", short | USAGE | IDS, tags=("greedy",), resume="ids"),
        *both("greedy", "the same without token ids", short | USAGE, tags=("greedy",), resume="replay"),
        *both("no-usage", "no usage asked for", short | IDS | {"stream": True}, tags=("greedy",)),
        *both(
            "continuous-usage-ids",
            "a usage in every event",
            short | IDS | {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
            tags=("greedy",),
            resume="ids",
        ),
        Case(
            "chat-logprobs-ids",
            "Chat: log probabilities with three alternatives",
            CHAT,
            short | USAGE | IDS | {"logprobs": True, "top_logprobs": 3},
            ("greedy", "logprobs"),
            "ids",
        ),
        Case(
            "text-logprobs-ids",
            "Completions: log probabilities with three alternatives",
            TEXT,
            short | USAGE | IDS | {"logprobs": 3},
            ("greedy", "logprobs"),
            "ids",
        ),
        *both("n2-seeded-ids", "two choices, seeded", seeded | USAGE | IDS | {"n": 2}, tags=("n2",), resume="replay"),
        Case(
            "text-two-prompts-ids",
            "Completions: two prompts in one request",
            TEXT,
            short | USAGE | IDS | {"prompt": [PROMPT, "Another one"]},
            ("n2", "greedy"),
            "ids",
        ),
        Case(
            "text-prompt-of-ids",
            "Completions: a prompt given as token ids",
            TEXT,
            short | USAGE | IDS | {"prompt": [100, 200, 300, 400]},
            ("greedy",),
            "ids",
        ),
        Case(
            "chat-stop-ids",
            "Chat: a stop string over two tokens; text is held back before it",
            CHAT,
            short | USAGE | IDS | {"stop": [stop_chat, "never seen"]},
            ("greedy", "stop"),
            "replay",
        ),
        Case(
            "chat-stop-included-ids",
            "Chat: a stop string that is kept in the output",
            CHAT,
            short | USAGE | IDS | {"stop": [stop_chat], "include_stop_str_in_output": True},
            ("greedy", "stop"),
            "replay",
        ),
        Case(
            "text-stop-ids",
            "Completions: a stop string over two tokens",
            TEXT,
            short | USAGE | IDS | {"stop": stop_text},
            ("greedy", "stop"),
            "replay",
        ),
        *both(
            "end-of-turn-ids",
            "the model ends by itself (its end token made likely)",
            USAGE | IDS | {"temperature": 0, "max_tokens": 200, "logit_bias": {"2": 1.9}},
            tags=("greedy",),
            resume="ids",
        ),
        Case(
            "chat-stop-token-ids",
            "Chat: stop_token_ids",
            CHAT,
            USAGE | IDS | {"temperature": 0, "max_tokens": 48, "stop_token_ids": [stop_token]},
            ("greedy", "stop"),
            "ids",
        ),
        *both("one-token-ids", "max_tokens 1", GREEDY | USAGE | IDS | {"max_tokens": 1}, tags=("greedy",)),
        *both("seeded-ids", "temperature 1 with a seed", seeded | USAGE | IDS, tags=("seeded",), resume="replay"),
        *both("seeded", "the same without token ids", seeded | USAGE, tags=("seeded",), resume="replay"),
        *both(
            "penalties-ids",
            "frequency and presence penalty",
            short | USAGE | IDS | {"frequency_penalty": 0.8, "presence_penalty": 0.4},
            tags=("penalties",),
            resume="replay",
        ),
        *both(
            "repetition-penalty-ids",
            "repetition penalty, which counts the prompt as well",
            short | USAGE | IDS | {"repetition_penalty": 1.2},
            tags=("penalties",),
            resume="ids",
        ),
        *both("long-ids", "600 tokens", GREEDY | USAGE | IDS | {"max_tokens": 600}, tags=("greedy",), resume="ids"),
        *both(
            "unicode-ids",
            "characters of three and four tokens, forced by a regex: many events carry ids and no text",
            USAGE | IDS | {"temperature": 0, "max_tokens": 100, "structured_outputs": {"regex": CJK}},
            tags=("unicode", "grammar"),
            resume="replay",
        ),
        Case(
            "chat-tools-required-ids",
            "Chat: a tool call is required",
            CHAT,
            USAGE | IDS | {"temperature": 0, "max_tokens": 200, "tools": TOOLS, "tool_choice": "required"},
            ("tools", "grammar"),
            "replay",
        ),
        Case(
            "chat-tools-one-ids",
            "Chat: one tool call is required, and no more",
            CHAT,
            USAGE
            | IDS
            | {"temperature": 0, "max_tokens": 200, "tools": TOOLS}
            | {"tool_choice": "required", "parallel_tool_calls": False},
            ("tools", "grammar"),
            "replay",
        ),
        Case(
            "chat-tools-named-ids",
            "Chat: a named tool",
            CHAT,
            USAGE | IDS | {"temperature": 0, "max_tokens": 200, "tools": TOOLS, "tool_choice": NAMED},
            ("tools", "grammar"),
            "replay",
        ),
        Case(
            "chat-tools-named",
            "Chat: the same without token ids",
            CHAT,
            USAGE | {"temperature": 0, "max_tokens": 200, "tools": TOOLS, "tool_choice": NAMED},
            ("tools", "grammar"),
            "replay",
        ),
        Case(
            "chat-tools-auto-ids",
            "Chat: tools offered and not used",
            CHAT,
            short | USAGE | IDS | {"tools": TOOLS, "tool_choice": "auto"},
            ("tools", "greedy"),
            "replay",
        ),
        Case(
            "chat-json-schema-ids",
            "Chat: response_format json_schema",
            CHAT,
            USAGE | IDS | {"temperature": 0, "max_tokens": 200, "response_format": RESPONSE_FORMAT},
            ("grammar",),
            "replay",
        ),
        Case(
            "chat-json-schema",
            "Chat: the same without token ids",
            CHAT,
            USAGE | {"temperature": 0, "max_tokens": 200, "response_format": RESPONSE_FORMAT},
            ("grammar",),
            "replay",
        ),
    ]


def unicode_by_bias(tokens: list[int]) -> list[Case]:
    """Bytes of multi-byte characters made likely: valid and invalid UTF-8 mixed, and no grammar in the way."""
    fields = GREEDY | USAGE | IDS | {"max_tokens": 60, "logit_bias": {str(token): 2.0 for token in tokens}}
    return both(
        "unicode-bias-ids", "incomplete and invalid UTF-8 in many events", fields, tags=("unicode",), resume="ids"
    )


PLAIN = [
    *both("plain-ids", "not streamed, with token ids", GREEDY | IDS | {"max_tokens": 24}, tags=("plain",)),
    *both("plain", "not streamed", GREEDY | {"max_tokens": 24}, tags=("plain",)),
    *both(
        "plain-n2",
        "not streamed, two choices",
        {"temperature": 1, "seed": 42, "ignore_eos": True, "max_tokens": 24, "n": 2},
        tags=("plain",),
    ),
]

REASONING = [
    Case(
        "chat-reasoning-ids",
        "Chat: reasoning content, then content (server with --reasoning-parser qwen3)",
        CHAT,
        GREEDY | USAGE | IDS | {"max_tokens": 60, "logit_bias": {"2047": 2.5}},
        ("reasoning",),
        "replay",
    ),
    Case(
        "chat-reasoning",
        "Chat: the same without token ids",
        CHAT,
        GREEDY | USAGE | {"max_tokens": 60, "logit_bias": {"2047": 2.5}},
        ("reasoning",),
        "replay",
    ),
]

ERRORS = [
    *both("too-long", "more tokens than the context holds: 400", USAGE | {"prompt": [100] * 3000}, tags=("error",))[1:],
    Case(
        "chat-too-long",
        "Chat: more tokens than the context holds: 400",
        CHAT,
        USAGE | {"messages": [{"role": "user", "content": "statement " * 3000}]},
        ("error",),
    ),
    *both("n2-greedy", "two choices and temperature 0: 400", USAGE | GREEDY | {"n": 2}, tags=("error",)),
    *both("unknown-model", "no such model: 404", USAGE | {"model": "nope"}, tags=("error",)),
    Case("chat-no-messages", "Chat: an empty list of messages: 400", CHAT, USAGE | {"messages": []}, ("error",)),
    Case("chat-bad-type", "Chat: temperature is a word: 400", CHAT, USAGE | {"temperature": "hot"}, ("error",)),
    Case(
        "text-bad-token",
        "Completions: a token out of the vocabulary: 400",
        TEXT,
        USAGE | {"prompt": [99999]},
        ("error",),
    ),
]

LONG = GREEDY | {"max_tokens": 240}
INTERRUPTED = [
    *both("{}-ids", "{}, with token ids", LONG | USAGE | IDS, tags=("interrupted", "greedy")),
    *both("{}", "{}, without token ids", LONG | USAGE, tags=("interrupted", "greedy")),
    Case(
        "text-{}-n2-ids",
        "Completions: {}, two seeded choices",
        TEXT,
        LONG | USAGE | IDS | {"n": 2, "temperature": 1, "seed": 42},
        ("interrupted", "n2", "seeded"),
    ),
    Case("chat-{}-plain", "Chat: {}, not streamed", CHAT, LONG, ("interrupted", "plain")),
]
"""What runs at once when something happens to a server; the braces take the name of what happened."""

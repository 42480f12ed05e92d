"""The kinds of requests whose broken streams are compared with unbroken ones. Pure data, apart from the stop strings,
which are cut from a live answer over the seam of two of its tokens, so that they are always met."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.recordings.cases import CHAT, CJK, GREEDY, MESSAGES, NAMED, PROMPT, RESPONSE_FORMAT, TEXT, TOOLS
from tests.vllm.servers import tiny_model

USAGE = {"stream_options": {"include_usage": True}}
RUNNING_USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
IDS = {"return_token_ids": True}
SHORT = GREEDY | USAGE | {"max_tokens": 40}
DICE: dict[str, Any] = USAGE | {"temperature": 1.0, "top_p": 0.95, "max_tokens": 40, "ignore_eos": True}
SEED = {"seed": 42}
PENALTIES = {"frequency_penalty": 0.8, "presence_penalty": 0.4}
OPEN_ENDED = USAGE | {"temperature": 0, "max_tokens": 200}
REGEX = {"structured_outputs": {"regex": "([a-z]{3,8} ){6}end"}}
CALL = (
    r'<tool_call>\n\{"name": "get_weather", "arguments": '
    r'\{"unit": "(celsius|kelvin)", "city": "[A-Za-z]{4,9}"\}\}\n</tool_call>'
)
THOUGHT_ENDS = {"logit_bias": {"2047": 2.5}}


@dataclass(frozen=True)
class Kind:
    name: str
    endpoint: str
    fields: Mapping[str, Any]
    by_chance: bool = False
    """Sampled without a seed: no second run could be equal, unless the router gave it a seed."""

    @property
    def has_one_form(self) -> bool:
        """Whether any answer to it has as many tokens as any other, whatever they are."""
        return not self.by_chance or bool(self.fields.get("ignore_eos") and "tools" not in self.fields)

    def request(self, **more: Any) -> dict[str, Any]:
        asked = {"messages": MESSAGES} if self.endpoint == CHAT else {"prompt": PROMPT}
        return {"model": "tiny", "stream": True, **asked, **self.fields, **more}

    def longer(self, tokens: int) -> Kind:
        """The same, long enough to be under way when an engine is killed, where its end is the limit alone."""
        if not self.fields.get("ignore_eos"):
            return self
        return Kind(self.name, self.endpoint, {**self.fields, "max_tokens": tokens}, self.by_chance)


def kinds(stop_chat: str, stop_text: str, stop_token: int) -> list[Kind]:
    return [
        *_both("greedy", SHORT),
        *_both("greedy, no usage asked for", GREEDY | {"max_tokens": 40}),
        *_both("greedy, usage in every event", SHORT | RUNNING_USAGE),
        *_both("greedy with token ids", SHORT | IDS),
        *_both("greedy, 300 tokens", SHORT | {"max_tokens": 300}),
        *_both("ends by itself", OPEN_ENDED | {"logit_bias": {"2": 1.9}}),
        *_both("min_tokens", USAGE | {"temperature": 0, "max_tokens": 40, "min_tokens": 30}),
        *_both("penalties", SHORT | PENALTIES),
        *_both("repetition penalty", SHORT | {"repetition_penalty": 1.2}),
        *_both("seeded", DICE | SEED),
        *_both("n=2, seeded", DICE | SEED | {"n": 2}),
        *_both("halves of characters", SHORT | _halves_of_characters()),
        *_both("characters of many tokens, by a regex", OPEN_ENDED | {"structured_outputs": {"regex": CJK}}),
        *_both("regex", OPEN_ENDED | REGEX),
        _chat("logprobs", SHORT | {"logprobs": True}),
        _chat("top_logprobs", SHORT | {"logprobs": True, "top_logprobs": 3}),
        _chat("logprobs and halves of characters", SHORT | _halves_of_characters() | {"logprobs": True}),
        _chat("stop string", SHORT | {"stop": [stop_chat, "never seen"]}),
        _chat("stop string kept in the answer", SHORT | {"stop": [stop_chat], "include_stop_str_in_output": True}),
        _chat("stop token", SHORT | {"stop_token_ids": [stop_token]}),
        _chat("tool call required", OPEN_ENDED | {"tools": TOOLS, "tool_choice": "required"}),
        _chat("named tool", OPEN_ENDED | {"tools": TOOLS, "tool_choice": NAMED}),
        _chat("tools offered, none used", SHORT | {"tools": TOOLS, "tool_choice": "auto"}),
        _chat("tools offered, one used", OPEN_ENDED | {"tools": TOOLS, "structured_outputs": {"regex": CALL}}),
        _chat("JSON schema", OPEN_ENDED | {"response_format": RESPONSE_FORMAT}),
        _chat("JSON schema, seeded", OPEN_ENDED | SEED | {"temperature": 1, "response_format": RESPONSE_FORMAT}),
        _text("logprobs=0", SHORT | {"logprobs": 0}),
        _text("logprobs=5", SHORT | {"logprobs": 5}),
        _text("logprobs and halves of characters", SHORT | _halves_of_characters() | {"logprobs": 2}),
        _text("stop string", SHORT | {"stop": stop_text}),
        _text("echo", SHORT | {"echo": True}),
        _text("two prompts", SHORT | {"prompt": [PROMPT, "Another one"]}),
        _text("prompt of token ids", SHORT | {"prompt": [100, 200, 300, 400]}),
        *_both("no seed", DICE, by_chance=True),
        *_both("no seed, with token ids", DICE | IDS, by_chance=True),
        *_both("no seed, n=2", DICE | {"n": 2}, by_chance=True),
        *_both("no seed, penalties", DICE | PENALTIES, by_chance=True),
        *_both("no seed, halves of characters", DICE | _halves_of_characters(), by_chance=True),
        *_both("no seed, ids, halves of characters", DICE | IDS | _halves_of_characters(), by_chance=True),
        _chat("no seed, logprobs", DICE | {"logprobs": True}, by_chance=True),
        _chat("no seed, JSON schema", OPEN_ENDED | {"temperature": 1, "response_format": RESPONSE_FORMAT}, True),
        _chat(
            "no seed, tool call required", DICE | {"max_tokens": 200, "tools": TOOLS, "tool_choice": "required"}, True
        ),
        _text("no seed, logprobs", DICE | {"logprobs": 2}, by_chance=True),
    ]


def reasoning_kinds() -> list[Kind]:
    """For engines with a reasoning parser: the answer begins with its thoughts."""
    return [
        _chat("reasoning", SHORT | THOUGHT_ENDS | {"max_tokens": 60}),
        _chat("reasoning, seeded", DICE | SEED | THOUGHT_ENDS | {"max_tokens": 60}),
        _chat("reasoning, no usage asked for", GREEDY | THOUGHT_ENDS | {"max_tokens": 60}),
        _chat("reasoning, no seed", DICE | THOUGHT_ENDS | {"max_tokens": 60}, by_chance=True),
    ]


def _chat(name: str, fields: Mapping[str, Any], by_chance: bool = False) -> Kind:
    return Kind(f"chat: {name}", CHAT, fields, by_chance)


def _text(name: str, fields: Mapping[str, Any], by_chance: bool = False) -> Kind:
    return Kind(f"completions: {name}", TEXT, fields, by_chance)


def _both(name: str, fields: Mapping[str, Any], by_chance: bool = False) -> list[Kind]:
    return [_chat(name, fields, by_chance), _text(name, fields, by_chance)]


def _halves_of_characters() -> dict[str, Any]:
    """Bytes of multi-byte characters made likely: valid and invalid UTF-8 mixed, and no grammar in the way."""
    vocabulary = json.loads((tiny_model() / "tokenizer.json").read_text())["model"]["vocab"]
    parts = [vocabulary[letter] for letter in vocabulary if len(letter) == 1 and 0xA1 <= ord(letter) <= 0xFF]
    return {"logit_bias": {str(token): 2.0 for token in sorted(parts)}}

"""What a client gets through the router is, byte for byte, what the engine sends to a client of its own.

Two things are left out. Ids and times differ from request to request. And vLLM groups tokens into events as the moment
has it, and lets choices of one request overtake each other: so of each choice the bytes of its text are put together,
and what is around them is compared event by event, with events that differ in nothing else taken for one. (That a
router keeps the groups as they came is claimed with recorded streams, in tests/properties.)
"""

from __future__ import annotations

import json
import re
import uuid
from collections import defaultdict
from typing import Any

import httpx
import pytest

from tests.e2e.stack import CHAT_MODEL, Stack

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USAGE = {"stream_options": {"include_usage": True}}
IDS = {"return_token_ids": True}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Zürich", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}}
NAMED = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {}),
    "chat with usage": (CHAT, USAGE),
    "chat with running usage": (CHAT, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    "chat with ids": (CHAT, USAGE | IDS),
    "chat with log probabilities": (CHAT, USAGE | {"logprobs": True, "top_logprobs": 2}),
    "chat with a tool": (CHAT, USAGE | NAMED | {"ignore_eos": False, "max_tokens": 60}),
    "chat with a schema": (CHAT, USAGE | FORMAT | {"ignore_eos": False, "max_tokens": 60}),
    "chat with a stop string": (CHAT, USAGE | {"stop": ["e", "zz"]}),
    "chat with two seeded choices": (CHAT, USAGE | {"n": 2, "seed": 3, "temperature": 1}),
    "completion": (TEXT, {}),
    "completion with usage": (TEXT, USAGE),
    "completion with ids": (TEXT, USAGE | IDS),
    "completion with log probabilities": (TEXT, USAGE | {"logprobs": 2}),
    "completion with echo": (TEXT, USAGE | {"echo": True}),
    "completion of ids": (TEXT, USAGE | {"prompt": [100, 200, 300]}),
    "completion of characters in parts": (
        TEXT,
        USAGE | {"structured_outputs": {"regex": "[一-丿]{8}"}, "ignore_eos": False},
    ),
    "two completions": (TEXT, USAGE | {"prompt": ["one", "two"]}),
}
VARYING = re.compile(rb'"created":\d+|"id":"[^"]*"')
CHOICE = re.compile(rb'"choices":\[\{"index":(\d+)')
SAID = re.compile(rb'(?<="text":")(?:[^"\\]|\\.)*|(?<="content":")(?:[^"\\]|\\.)*|(?<="arguments":")(?:[^"\\]|\\.)*')
"""A piece of an answer, as it is written: JSON's escapes are left as they are."""
GROUPED = re.compile(rb'(?<="token_ids":)\[[\d,]*\]|(?<="logprobs":)\{.*\}(?=,"finish_reason")|(?<=_tokens":)\d+')
"""What else depends on the group: ids, log probabilities, running counts. `_told` compares their values."""
NOTHING = re.compile(rb'"delta":\{\},.*"finish_reason":null')
"""A token that is a part of a character and came alone."""
ATTEMPTS = 10
"""A very busy machine may send a whole answer as one event, so that there is nothing around its middle."""


def _request(endpoint: str, fields: dict[str, Any], *, stream: bool) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": "Hi"}]} if endpoint == CHAT else {"prompt": "Once upon a time"}
    common = {"model": CHAT_MODEL, "temperature": 0, "max_tokens": 16, "ignore_eos": True, "stream": stream}
    body = {**common, **asked, **fields}
    return body if stream else {name: value for name, value in body.items() if name != "stream_options"}


def _ask(url: str, endpoint: str, body: dict[str, Any], key: str) -> httpx.Response:
    body = {**body, "cache_salt": str(uuid.uuid4())}  # nobody finds the prompt in the prefix cache
    answer = httpx.post(f"{url}{endpoint}", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def _both(stack: Stack, name: str, *, stream: bool) -> tuple[bytes, bytes]:
    endpoint, fields = CASES[name]
    body = _request(endpoint, fields, stream=stream)
    direct = _ask(f"http://{stack.replicas(CHAT_MODEL)[0].address}", endpoint, body, stack.key)
    routed = _ask(stack.router_url, endpoint, body, stack.key)
    assert direct.headers["content-type"] == routed.headers["content-type"]
    return direct.content, routed.content


def _written(body: bytes) -> dict[bytes, tuple[bytes, list[bytes]]]:
    """Of each choice its text as written, and the events around it; under an empty name those that belong to none."""
    said: dict[bytes, bytes] = defaultdict(bytes)
    around: dict[bytes, list[bytes]] = defaultdict(list)
    for event in body.split(b"\n\n")[:-1]:
        found = CHOICE.search(event)
        choice = found[1] if found else b""
        said[choice] += b"".join(SAID.findall(event))
        frame = SAID.sub(b"", VARYING.sub(b"*", event))
        frame = GROUPED.sub(b"*", frame) if found else frame
        if not NOTHING.search(frame) and frame not in around[choice][-1:]:
            around[choice].append(frame)
    return {choice: (said[choice], frames) for choice, frames in around.items()}


def _told(body: bytes) -> list[Any]:
    """Text, arguments, token ids and log probabilities of each choice, and the usage."""
    told: dict[int, list[Any]] = {}
    usage = None
    for event in body.split(b"\n\n")[:-2]:
        chunk = json.loads(event.removeprefix(b"data: "))
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            text, ids, logs = told.setdefault(choice["index"], ["", [], []])
            delta = choice.get("delta", {})
            calls = "".join(call["function"].get("arguments") or "" for call in delta.get("tool_calls") or ())
            text += (choice.get("text") or delta.get("content") or "") + calls
            ids += choice.get("token_ids") or []
            logs += (choice["logprobs"] or {}).get("content") or (choice["logprobs"] or {}).get("token_logprobs") or []
            told[choice["index"]][0] = text
    return [sorted(told.items()), usage]


@pytest.mark.parametrize("name", CASES)
def test_a_routed_stream_is_the_engines_own(vllm_stack: Stack, name: str) -> None:
    for _ in range(ATTEMPTS):
        direct, routed = _both(vllm_stack, name, stream=True)
        assert _told(direct) == _told(routed)
        theirs, ours = _written(direct), _written(routed)
        if theirs == ours:
            break
    assert theirs == ours


@pytest.mark.parametrize("name", CASES)
def test_a_routed_whole_answer_is_the_engines_own(vllm_stack: Stack, name: str) -> None:
    direct, routed = _both(vllm_stack, name, stream=False)
    assert VARYING.sub(b"*", direct) == VARYING.sub(b"*", routed)


def test_a_refusal_is_the_engines_own(vllm_stack: Stack) -> None:
    for fields in ({"n": 2}, {"top_p": 7}, {"stop_token_ids": "no"}):
        body = _request(CHAT, fields, stream=True)
        answers = [
            httpx.post(f"{url}{CHAT}", json=body, headers={"authorization": f"Bearer {vllm_stack.key}"}, timeout=60)
            for url in (f"http://{vllm_stack.replicas(CHAT_MODEL)[0].address}", vllm_stack.router_url)
        ]
        assert [answer.status_code for answer in answers] == [400, 400]
        assert answers[0].json()["error"]["message"] == answers[1].json()["error"]["message"]

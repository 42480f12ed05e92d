"""What people do with the openai SDK works, against the router as against vLLM itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel, ConfigDict

from tests.e2e.conftest import Target

QUESTION: list[Any] = [{"role": "user", "content": "Name a river. 你好 🙂"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"unit": {"enum": ["celsius", "fahrenheit"]}, "city": {"enum": ["Zürich", "Reykjavík"]}},
    "required": ["unit", "city"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather", "parameters": PARAMETERS},
}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


class Weather(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sky: Literal["clear", "overcast"]
    windy: bool


@pytest.fixture
def client(target: Target) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=target.base_url, api_key=target.key, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
async def async_client(target: Target) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=target.base_url, api_key=target.key, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
def embedder(target: Target) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=target.embed_base_url, api_key=target.key, max_retries=0, timeout=60) as made:
        yield made


def test_the_models_are_listed(client: openai.OpenAI, target: Target) -> None:
    assert target.chat_model in {model.id for model in client.models.list()}


def test_a_chat_is_answered_with_its_usage(client: openai.OpenAI, target: Target) -> None:
    answer = client.chat.completions.create(model=target.chat_model, messages=QUESTION, **GREEDY)
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == target.chat_model
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24


def test_a_streamed_chat_says_the_same_as_a_whole_one(client: openai.OpenAI, target: Target) -> None:
    whole = client.chat.completions.create(model=target.chat_model, messages=QUESTION, **GREEDY)
    with client.chat.completions.create(
        model=target.chat_model, messages=QUESTION, stream=True, stream_options={"include_usage": True}, **GREEDY
    ) as stream:
        chunks = list(stream)
    assert said(chunks) == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices and chunk.choices[0].delta.role] == [
        "assistant"
    ]
    assert reasons(chunks) == ["length"]
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 24
    assert whole.usage is not None
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_client_that_asks_for_no_usage_sees_none(client: openai.OpenAI, target: Target) -> None:
    with client.chat.completions.create(model=target.chat_model, messages=QUESTION, stream=True, **GREEDY) as stream:
        chunks = list(stream)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert reasons(chunks) == ["length"]


def test_token_ids_come_to_those_only_who_ask(client: openai.OpenAI, target: Target) -> None:
    for asked in (False, True):
        body = {"ignore_eos": True} | ({"return_token_ids": True} if asked else {})
        with client.chat.completions.create(
            model=target.chat_model, messages=QUESTION, stream=True, max_tokens=12, temperature=0, extra_body=body
        ) as stream:
            chunks = list(stream)
        ids = [token for c in chunks for token in (c.choices[0].model_extra or {}).get("token_ids") or ()]
        prompts = [(c.model_extra or {}).get("prompt_token_ids") for c in chunks]
        assert len(ids) == (12 if asked else 0)
        assert any(prompts) is asked


def test_completions_work_whole_and_streamed(client: openai.OpenAI, target: Target) -> None:
    whole = client.completions.create(model=target.chat_model, prompt="Once upon", **GREEDY)
    with client.completions.create(model=target.chat_model, prompt="Once upon", stream=True, **GREEDY) as stream:
        text = "".join(chunk.choices[0].text for chunk in stream)
    assert whole.id.startswith("cmpl-")
    assert text == whole.choices[0].text
    assert text


def test_log_probabilities_come_one_for_each_token(client: openai.OpenAI, target: Target) -> None:
    with client.chat.completions.create(
        model=target.chat_model, messages=QUESTION, stream=True, logprobs=True, top_logprobs=2, **GREEDY
    ) as stream:
        chunks = list(stream)
    entries = [entry for c in chunks if c.choices[0].logprobs for entry in c.choices[0].logprobs.content or ()]
    assert len(entries) == 24
    assert all(len(entry.top_logprobs) == 2 for entry in entries)


def test_two_choices_come_whole(client: openai.OpenAI, target: Target) -> None:
    with client.chat.completions.create(
        model=target.chat_model,
        messages=QUESTION,
        stream=True,
        n=2,
        seed=7,
        max_tokens=12,
        temperature=1,
        extra_body={"ignore_eos": True},
    ) as stream:
        ends = sorted((c.choices[0].index, c.choices[0].finish_reason) for c in stream if c.choices[0].finish_reason)
    assert ends == [(0, "length"), (1, "length")]


def test_a_named_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI, target: Target) -> None:
    answer = client.chat.completions.create(
        model=target.chat_model, messages=QUESTION, tools=[TOOL], tool_choice=NAMED, temperature=0, max_tokens=300
    )
    calls = answer.choices[0].message.tool_calls or []
    assert [call.type for call in calls] == ["function"]
    call = calls[0]
    assert call.type == "function"
    assert call.function.name == "get_weather"
    check_arguments(call.function.arguments)


def test_a_streamed_tool_call_is_put_together_and_its_answer_taken(client: openai.OpenAI, target: Target) -> None:
    with client.chat.completions.create(
        model=target.chat_model,
        messages=QUESTION,
        tools=[TOOL],
        tool_choice="required",
        temperature=0,
        max_tokens=300,
        stream=True,
        parallel_tool_calls=False,
    ) as stream:
        parts = [part for c in stream for part in c.choices[0].delta.tool_calls or ()]
    name = "".join(part.function.name or "" for part in parts if part.function)
    arguments = "".join(part.function.arguments or "" for part in parts if part.function)
    call_id = next(part.id for part in parts if part.id)
    assert name == "get_weather"
    check_arguments(arguments)
    function = {"name": name, "arguments": arguments}
    said_before: list[Any] = [
        *QUESTION,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call_id, "content": "overcast, 7 degrees"},
    ]
    answer = client.chat.completions.create(model=target.chat_model, messages=said_before, tools=[TOOL], **GREEDY)
    assert answer.choices[0].message.content


def test_a_json_schema_is_kept(client: openai.OpenAI, target: Target) -> None:
    answer = client.chat.completions.parse(
        model=target.chat_model, messages=QUESTION, response_format=Weather, temperature=0, max_tokens=200
    )
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Weather)
    assert parsed.sky in {"clear", "overcast"}


def test_a_json_schema_is_kept_in_a_stream(client: openai.OpenAI, target: Target) -> None:
    with client.chat.completions.stream(
        model=target.chat_model, messages=QUESTION, response_format=Weather, temperature=0, max_tokens=200
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Weather)


def test_embeddings_come_in_the_order_of_their_inputs(embedder: openai.OpenAI, target: Target) -> None:
    both = embedder.embeddings.create(model=target.embed_model, input=["a cat", "quarterly figures of a bank"])
    cat = embedder.embeddings.create(model=target.embed_model, input="a cat")
    plain = embedder.embeddings.create(model=target.embed_model, input="a cat", encoding_format="float")
    assert [one.index for one in both.data] == [0, 1]
    assert both.data[0].embedding == pytest.approx(cat.data[0].embedding, abs=1e-4)
    assert plain.data[0].embedding == pytest.approx(cat.data[0].embedding, abs=1e-4)
    assert both.data[0].embedding != pytest.approx(both.data[1].embedding, abs=1e-2)
    assert both.usage.prompt_tokens > 0


def test_fields_of_the_platform_do_no_harm(client: openai.OpenAI, target: Target) -> None:
    answer = client.chat.completions.create(
        model=target.chat_model, messages=QUESTION, user="u", metadata={"a": "b"}, store=True, **GREEDY
    )
    assert answer.choices[0].message.content


def test_the_request_id_of_the_client_comes_back(client: openai.OpenAI, target: Target) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=target.chat_model, messages=QUESTION, extra_headers={"x-request-id": "e2e-17"}, **GREEDY
    )
    assert raw.headers["x-request-id"] == "e2e-17"
    assert raw.parse().choices[0].message.content


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="nobody", messages=QUESTION)


def test_a_prompt_that_is_too_long_is_the_clients_own_error(client: openai.OpenAI, target: Target) -> None:
    long: list[Any] = [{"role": "user", "content": "statement " * 3000}]
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.chat.completions.create(model=target.chat_model, messages=long, stream=True)


def test_a_wrong_key_is_refused(target: Target) -> None:
    if not target.routed:
        pytest.skip("this vLLM was started without keys")
    wrong = openai.OpenAI(base_url=target.base_url, api_key="sk-wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.chat.completions.create(model=target.chat_model, messages=QUESTION)


def test_a_stream_that_is_left_early_leaves_the_client_usable(client: openai.OpenAI, target: Target) -> None:
    with client.chat.completions.create(
        model=target.chat_model, messages=QUESTION, stream=True, max_tokens=1000, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream))
    answer = client.chat.completions.create(model=target.chat_model, messages=QUESTION, **GREEDY)
    assert answer.choices[0].message.content


async def test_eight_asynchronous_streams_at_once_are_each_whole(
    async_client: openai.AsyncOpenAI, target: Target
) -> None:
    async def one() -> str:
        stream = await async_client.chat.completions.create(
            model=target.chat_model, messages=QUESTION, stream=True, **GREEDY
        )
        async with stream:
            return said([chunk async for chunk in stream])

    answers = await asyncio.gather(*(one() for _ in range(8)))
    assert answers[0]
    assert len(set(answers)) == 1


async def test_asynchronous_chat_and_completions_are_answered(async_client: openai.AsyncOpenAI, target: Target) -> None:
    chat = await async_client.chat.completions.create(model=target.chat_model, messages=QUESTION, **GREEDY)
    text = await async_client.completions.create(model=target.chat_model, prompt=["One", "Two"], **GREEDY)
    assert chat.choices[0].message.content
    assert [choice.index for choice in text.choices] == [0, 1]


def said(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def reasons(chunks: list[ChatCompletionChunk]) -> list[str]:
    return [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]


def check_arguments(arguments: str) -> None:
    given = json.loads(arguments)
    assert given["unit"] in {"celsius", "fahrenheit"}
    assert given["city"] in {"Zürich", "Reykjavík"}

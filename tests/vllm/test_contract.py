"""What the router relies on of vLLM, asked of a real one: read this first when a new version behaves otherwise."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.recordings.exchange import Exchange, exchange
from tests.recordings.library import Answer, text_of
from tests.vllm.servers import VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
Pair = tuple[VllmServer, VllmServer]


def ask(server: VllmServer, endpoint: str, **fields: Any) -> Answer:
    asked = {"messages": [{"role": "user", "content": "Hi"}]} if endpoint == CHAT else {"prompt": "Once upon"}
    body = {"model": "tiny", "temperature": 0, "max_tokens": 8, "ignore_eos": True, **asked, **fields}
    return Answer(bytes(exchange(server.port, endpoint, body).wire))


def say(server: VllmServer, body: str) -> Exchange:
    return exchange(server.port, CHAT, body)


@pytest.mark.parametrize("endpoint", [CHAT, TEXT])
def test_unknown_fields_and_those_of_the_platform_are_ignored(vllm_pair: Pair, endpoint: str) -> None:
    plain = ask(vllm_pair[0], endpoint)
    more = ask(vllm_pair[0], endpoint, frobnicate=1, user="u", metadata={"a": "b"}, store=True, service_tier="auto")
    assert plain.text() == more.text()


def test_of_a_key_that_comes_twice_the_last_one_counts(vllm_pair: Pair) -> None:
    head = '{"model":"tiny","temperature":0,"messages":[{"role":"user","content":"Hi"}],"max_tokens":2'
    ids = say(vllm_pair[0], head + ',"return_token_ids":false,"return_token_ids":true}')
    none = say(vllm_pair[0], head + ',"return_token_ids":true,"return_token_ids":false}')
    assert len(Answer(bytes(ids.wire)).token_ids()) == 2
    assert Answer(bytes(none.wire)).token_ids() == []
    options = ',"stream":true,"stream_options":null,"stream_options":{"include_usage":true}}'
    assert b'"usage":{' in Answer(bytes(say(vllm_pair[0], head + options).wire)).body


def test_stream_options_without_a_stream_are_refused(vllm_pair: Pair) -> None:
    assert b" 400 " in ask(vllm_pair[0], CHAT, stream_options={"include_usage": True}).head


@pytest.mark.parametrize("stream", ["true", 1, "yes"])
def test_a_stream_may_be_asked_for_in_words_and_numbers(vllm_pair: Pair, stream: object) -> None:
    assert ask(vllm_pair[0], CHAT, stream=stream).streamed


@pytest.mark.parametrize("endpoint", [CHAT, TEXT])
def test_ids_are_null_where_they_were_not_asked_for_and_else_name_every_token(vllm_pair: Pair, endpoint: str) -> None:
    without = ask(vllm_pair[0], endpoint, stream=True)
    having = ask(vllm_pair[0], endpoint, stream=True, return_token_ids=True)
    assert all(part.get("token_ids") is None for part in without.choices())
    assert len(having.token_ids()) == 8
    assert having.prompt_token_ids()
    assert without.text() == having.text()


def test_a_chat_without_ids_leaves_out_events_that_would_carry_nothing(vllm_pair: Pair) -> None:
    fields = {"stream": True, "structured_outputs": {"regex": "[一-丿]{6}"}, "ignore_eos": False, "max_tokens": 40}
    having = list(ask(vllm_pair[0], CHAT, return_token_ids=True, **fields).choices())
    without = list(ask(vllm_pair[0], CHAT, **fields).choices())
    carrying_nothing = [part for part in having if not part["delta"] and not part["finish_reason"]]
    assert carrying_nothing or any(len(part["token_ids"] or ()) > 1 for part in having)  # or a busy engine bundled
    assert all(text_of(part) or part["finish_reason"] or "role" in part["delta"] for part in without)


def test_asking_for_ids_takes_the_echo_away(vllm_pair: Pair) -> None:
    assert ask(vllm_pair[0], TEXT, stream=True, echo=True).text().startswith("Once upon")
    assert not ask(vllm_pair[0], TEXT, stream=True, echo=True, return_token_ids=True).text().startswith("Once upon")


def test_a_stop_string_cuts_the_text_and_not_the_ids(vllm_pair: Pair) -> None:
    whole = ask(vllm_pair[0], TEXT, stream=True, return_token_ids=True)
    stop = whole.text()[6:8]
    cut = ask(vllm_pair[0], TEXT, stream=True, return_token_ids=True, stop=stop)
    ids = cut.token_ids()
    last = list(cut.choices())[-1]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)
    assert whole.token_ids()[: len(ids)] == ids
    assert cut.text() == whole.text().partition(stop)[0]


def test_the_fingerprint_is_in_the_usage_event_or_else_in_the_last_of_a_choice(vllm_pair: Pair) -> None:
    plain = ask(vllm_pair[0], CHAT, stream=True).documents()
    usage = ask(vllm_pair[0], CHAT, stream=True, stream_options={"include_usage": True}).documents()
    assert [index for index, one in enumerate(plain) if "system_fingerprint" in one] == [len(plain) - 1]
    assert [index for index, one in enumerate(usage) if "system_fingerprint" in one] == [len(usage) - 1]
    assert usage[-1]["choices"] == []


def test_the_clients_error_may_come_as_the_first_event_of_a_stream(vllm_pair: Pair) -> None:
    answer = ask(vllm_pair[0], TEXT, stream=True, prompt=[99999])
    assert b" 200 " in answer.head
    first, last = answer.events()
    assert json.loads(first.removeprefix(b"data: "))["error"]["code"] == 400
    assert last == b"data: [DONE]\n\n"


def test_the_request_id_names_the_answer_and_comes_back(vllm_pair: Pair) -> None:
    done = exchange(
        vllm_pair[0].port,
        TEXT,
        {"model": "tiny", "prompt": "a", "max_tokens": 1},
        headers={"x-request-id": "given"},
    )
    answer = Answer(bytes(done.wire))
    assert answer.documents()[0]["id"] == "cmpl-given"
    assert b"x-request-id: given" in answer.head


@pytest.mark.parametrize("endpoint", [CHAT, TEXT])
@pytest.mark.parametrize("after", [1, 7, 20, 39])
def test_ids_continue_exactly_on_the_other_server(vllm_pair: Pair, endpoint: str, after: int) -> None:
    fields = {"stream": True, "return_token_ids": True}
    whole = ask(vllm_pair[0], endpoint, max_tokens=40, **fields)
    prompt = whole.prompt_token_ids() + whole.token_ids()[:after]
    rest = ask(vllm_pair[1], TEXT, prompt=prompt, max_tokens=40 - after, **fields)
    assert whole.token_ids() == whole.token_ids()[:after] + rest.token_ids()


@pytest.mark.parametrize("fields", [{"temperature": 1}, {"temperature": 0.7, "top_p": 0.9}, {"presence_penalty": 1.5}])
def test_the_same_seed_gives_the_same_on_the_other_server(vllm_pair: Pair, fields: dict[str, Any]) -> None:
    first, second = (ask(one, CHAT, stream=True, return_token_ids=True, seed=11, **fields) for one in vllm_pair)
    assert first.token_ids() == second.token_ids()


def test_embeddings_come_from_a_pooling_server_only(vllm_pooling_url: str, vllm_urls: tuple[str, str]) -> None:
    body = {"model": "tiny", "input": ["a", "b"]}
    answer = httpx.post(f"{vllm_pooling_url}/v1/embeddings", json=body, timeout=30).json()
    assert [one["index"] for one in answer["data"]] == [0, 1]
    assert sum(x * x for x in answer["data"][0]["embedding"]) == pytest.approx(1, abs=1e-3)
    assert httpx.post(f"{vllm_urls[0]}/v1/embeddings", json=body, timeout=30).status_code == 404

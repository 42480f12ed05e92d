"""What an engine's wire looks like: facts that real vLLM and the simulated engine must both satisfy.

The simulated engine is started here. The real one (`pytest -m vllm`) is that of tests/vllm, or the one that
SWITCHYARD_TEST_VLLM_URL names, started with --enable-prompt-tokens-details, --enable-auto-tool-choice,
--tool-call-parser hermes and VLLM_SERVER_DEV_MODE=1. The last tests hold the simulated engine to the shapes in
recordings of the real one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.recordings.library import Recording, recordings

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED = [{"role": "user", "content": "What is a router?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"unit": {"enum": ["c", "f"]}}, "required": ["unit"]},
    },
}


def _simulated(*flags: str) -> Iterator[str]:
    command = [sys.executable, "-m", "node_agent.engines.simulated", "--port", "0", "--profile", "instant", *flags]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        yield "http://" + child.stdout.readline().split()[-1]
    finally:
        child.terminate()
        child.wait(20)
        child.stdout.close()


@pytest.fixture(scope="module")
def simulated_url() -> Iterator[str]:
    yield from _simulated("--model", "tiny", "--max-model-len", "2048", "--enable-request-id-headers")


@pytest.fixture
def vllm_url(request: pytest.FixtureRequest) -> str:
    url = os.environ.get("SWITCHYARD_TEST_VLLM_URL", "") or request.getfixturevalue("vllm_urls")[0]
    return str(url).rstrip("/")


@pytest.fixture(params=["simulated", pytest.param("vllm", marks=pytest.mark.vllm)])
def engine(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=request.getfixturevalue(f"{request.param}_url"), timeout=60) as client:
        yield client


@pytest.fixture
def model(engine: httpx.Client) -> str:
    name: str = engine.get("/v1/models").json()["data"][0]["id"]
    return name


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": ASKED, "temperature": 0, "max_tokens": 12, "ignore_eos": True, **more}


def text(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "What is", "temperature": 0, "max_tokens": 12, "ignore_eos": True, **more}


def stream(engine: httpx.Client, path: str, body: dict[str, Any]) -> list[Any]:
    """Decoded events, the last one being the text [DONE]."""
    with engine.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    return [json.loads(one) if one.startswith("{") else one for one in data]


def ids(events: list[Any]) -> list[int]:
    choices = [c for e in events if isinstance(e, dict) for c in e["choices"]]
    return [i for c in choices for i in c.get("token_ids") or []]


def said(events: list[Any]) -> str:
    choices = [c for e in events if isinstance(e, dict) for c in e["choices"]]
    return "".join((c["delta"].get("content") or "") if "delta" in c else c["text"] for c in choices)


def test_a_chat_stream_begins_with_the_role_and_ends_with_a_reason_and_done(engine, model):
    events = stream(engine, CHAT, chat(model))
    assert {"role": "assistant", "content": ""} == events[0]["choices"][0]["delta"]
    assert "chat.completion.chunk" == events[0]["object"]
    assert ["length", "[DONE]"] == [events[-2]["choices"][0]["finish_reason"], events[-1]]
    assert 1 == sum(e["choices"][0]["finish_reason"] is not None for e in events[:-1])


def test_a_completion_stream_has_no_role_chunk(engine, model):
    events = stream(engine, TEXT, text(model))
    assert "text_completion" == events[0]["object"]
    assert ["length", "[DONE]"] == [events[-2]["choices"][0]["finish_reason"], events[-1]]


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat), (TEXT, text)])
def test_usage_is_a_chunk_of_its_own_without_choices_before_done(engine, model, path, body):
    events = stream(engine, path, body(model, stream_options={"include_usage": True}))
    usage = events[-2]["usage"]
    assert [] == events[-2]["choices"]
    assert (12, usage["prompt_tokens"] + 12) == (usage["completion_tokens"], usage["total_tokens"])
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0
    assert events[-2]["system_fingerprint"].startswith("vllm-0")
    assert not any("usage" in e for e in stream(engine, path, body(model))[:-1])


def test_continuous_usage_grows_by_what_an_event_carries(engine, model):
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = stream(engine, CHAT, chat(model, stream_options=options, return_token_ids=True))[:-2]
    seen = 0
    for event in events:
        seen += len(ids([event]))
        assert seen == event["usage"]["completion_tokens"]


def test_chat_gives_prompt_ids_beside_the_choices_of_the_first_chunk(engine, model):
    events = stream(engine, CHAT, chat(model, return_token_ids=True))
    assert all(isinstance(i, int) for i in events[0]["prompt_token_ids"])
    assert "prompt_token_ids" not in events[1]
    assert 12 == len(ids(events))
    whole = engine.post(CHAT, json=chat(model, return_token_ids=True)).json()
    assert events[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert ids(events) == whole["choices"][0]["token_ids"]


def test_completions_give_prompt_ids_within_the_first_choice(engine, model):
    events = stream(engine, TEXT, text(model, return_token_ids=True))
    assert events[0]["choices"][0]["prompt_token_ids"]
    assert all(choice["prompt_token_ids"] is None for event in events[1:-1] for choice in event["choices"])
    assert 12 == len(ids(events))


def test_a_greedy_chat_goes_on_exactly_from_prompt_ids_and_generated_ids(engine, model):
    events = stream(engine, CHAT, chat(model, return_token_ids=True, max_tokens=60))
    prompt, whole = events[0]["prompt_token_ids"], ids(events)
    for cut in (1, 20, 59):
        rest = stream(
            engine, TEXT, text(model, prompt=prompt + whole[:cut], max_tokens=60 - cut, return_token_ids=True)
        )
        assert whole[cut:] == ids(rest)


def test_text_joins_when_cut_back_to_the_last_event_that_carried_text_and_one_id(engine, model):
    events = stream(engine, TEXT, text(model, return_token_ids=True, max_tokens=60))
    before_the_end = events[:-2]
    for cut in range(5, max(6, len(before_the_end)), 9):
        kept = before_the_end[:cut]
        while kept and not (said(kept[-1:]) and len(ids(kept[-1:])) == 1):
            kept = kept[:-1]
        prompt = events[0]["choices"][0]["prompt_token_ids"] + ids(kept)
        rest = stream(engine, TEXT, text(model, prompt=prompt, max_tokens=60 - len(ids(kept))))
        assert said(events) == said(kept) + said(rest)


def test_a_seed_repeats_a_sampled_answer_but_not_its_continuation_from_ids(engine, model):
    asked = chat(model, temperature=1, seed=11, max_tokens=40, return_token_ids=True)
    events = stream(engine, CHAT, asked)
    assert ids(events) == ids(stream(engine, CHAT, asked))
    rest = {"prompt": events[0]["prompt_token_ids"] + ids(events)[:20], "max_tokens": 20, "return_token_ids": True}
    assert ids(events)[20:] != ids(stream(engine, TEXT, text(model, temperature=1, seed=11, **rest)))


def test_a_stop_string_ends_the_text_before_it_and_is_named(engine, model):
    plain = said(stream(engine, TEXT, text(model, max_tokens=60)))
    stop = plain[30:34]
    events = stream(engine, TEXT, text(model, max_tokens=60, stop=[stop]))
    assert plain[: plain.index(stop)] == said(events)
    last = events[-2]["choices"][0]
    assert ("stop", stop) == (last["finish_reason"], last["stop_reason"])


def test_a_whole_answer_says_what_the_stream_says(engine, model):
    whole = engine.post(CHAT, json=chat(model)).json()
    assert whole["choices"][0]["message"]["content"] == said(stream(engine, CHAT, chat(model)))
    assert ("chat.completion", "length") == (whole["object"], whole["choices"][0]["finish_reason"])
    assert 12 == whole["usage"]["completion_tokens"]


def test_choices_are_numbered_and_greedy_ones_are_refused(engine, model):
    events = stream(engine, CHAT, chat(model, n=2, temperature=1, seed=1))
    assert {0, 1} == {c["index"] for e in events[:-1] for c in e["choices"]}
    assert 400 == engine.post(CHAT, json=chat(model, n=2)).status_code


def test_logprobs_come_with_every_token(engine, model):
    talk = engine.post(CHAT, json=chat(model, logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"][
        "content"
    ]
    assert 12 == len(talk)
    assert {"token", "logprob", "bytes", "top_logprobs"} == set(talk[0])
    plain = engine.post(TEXT, json=text(model, logprobs=1)).json()["choices"][0]["logprobs"]
    assert {"text_offset", "token_logprobs", "tokens", "top_logprobs"} == set(plain)
    assert [12] * 4 == [len(v) for v in plain.values()]


def test_a_named_tool_is_called_piece_by_piece_with_valid_arguments(engine, model):
    choice = {"type": "function", "function": {"name": "get_weather"}}
    body = chat(model, tools=[TOOL], tool_choice=choice, max_tokens=200, ignore_eos=False)
    events = stream(engine, CHAT, body)
    calls = [c for e in events[:-1] for ch in e["choices"] for c in ch["delta"].get("tool_calls") or []]
    assert ("get_weather", "function") == (calls[0]["function"]["name"], calls[0]["type"])
    assert {"unit"} == set(json.loads("".join(c["function"].get("arguments") or "" for c in calls)))
    assert "stop" == events[-2]["choices"][0]["finish_reason"]


@pytest.mark.parametrize(
    ("path", "more", "status", "type_", "param"),
    [
        (CHAT, {"model": "nope"}, 404, "NotFoundError", "model"),
        (CHAT, {"messages": []}, 400, "BadRequestError", None),
        (CHAT, {"temperature": "hot"}, 400, "Bad Request", "body.temperature"),
        (TEXT, {"prompt": [100] * 3000}, 400, "BadRequestError", "input_tokens"),
        (TEXT, {"min_tokens": 13}, 400, "BadRequestError", None),
    ],
)
def test_refusals_have_one_shape_streamed_or_not(engine, model, path, more, status, type_, param):
    body = chat(model) if path == CHAT else text(model)
    for streamed in (False, True):
        response = engine.post(path, json={**body, **more, "stream": streamed})
        error = response.json()["error"]
        assert ["message", "type", "param", "code"] == list(error)
        assert (status, status, type_) == (response.status_code, error["code"], error["type"])
        assert param is None or param == error["param"]


def test_an_id_outside_the_vocabulary_is_refused_inside_the_stream(engine, model):
    events = stream(engine, TEXT, text(model, prompt=[999_999_999]))
    assert ("[DONE]", 400) == (events[-1], events[0]["error"]["code"])
    assert 400 == engine.post(TEXT, json=text(model, prompt=[999_999_999])).status_code


def test_paths_that_are_not_there(engine):
    response = engine.post("/v1/nothing", json={})
    assert (404, {"detail": "Not Found"}) == (response.status_code, response.json())


def test_a_request_id_becomes_part_of_the_answers_id(engine, model):
    headers = {"x-request-id": "abc-1"}
    assert "chatcmpl-abc-1" == engine.post(CHAT, json=chat(model), headers=headers).json()["id"]
    assert "cmpl-abc-1" in engine.post(TEXT, json=text(model), headers=headers).json()["id"]


def test_what_the_engine_tells_about_itself(engine, model):
    assert (200, b"") == ((health := engine.get("/health")).status_code, health.content)
    assert {"version"} == set(engine.get("/version").json())
    assert {"server_load"} == set(engine.get("/load").json())
    card = engine.get("/v1/models").json()["data"][0]
    assert ["id", "object", "created", "owned_by", "root", "parent", "max_model_len", "permission"] == list(card)


def test_texts_are_tokenised_and_back(engine, model):
    made = engine.post("/tokenize", json={"model": model, "prompt": "What is"}).json()
    assert ["count", "max_model_len", "tokens", "token_strs"] == list(made)
    back = engine.post("/detokenize", json={"model": model, "tokens": made["tokens"]}).json()
    assert {"prompt": "What is"} == back


def test_metrics_that_an_agent_reads_are_there(engine, model):
    engine.post(CHAT, json=chat(model))
    page = engine.get("/metrics").text
    label = f'engine="0",model_name="{model}"'
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:num_preemptions_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:inter_token_latency_seconds_sum",
        "vllm:request_queue_time_seconds_sum",
    ):
        assert f"\n{name}{{{label}}} " in page
    assert f'vllm:engine_sleep_state{{{label},sleep_state="awake"}} 1.0' in page
    info = next(line for line in page.splitlines() if line.startswith("vllm:cache_config_info{"))
    assert all(f'{key}="' in info for key in ("block_size", "num_gpu_blocks", "kv_cache_size_tokens"))


def test_sleep_is_a_state_that_only_its_own_metric_shows(engine, model):
    assert {"status": "sleeping", "level": 1} == engine.post("/sleep?level=1").json()
    try:
        assert {"is_sleeping": True} == engine.get("/is_sleeping").json()
        assert 200 == engine.get("/health").status_code
        assert 'sleep_state="weights_offloaded"} 1.0' in engine.get("/metrics").text
    finally:
        assert {"status": "awake", "tags": None} == engine.post("/wake_up").json()
    assert 200 == engine.post(CHAT, json=chat(model)).status_code


def _shape(value: Any, key: str = "") -> str:
    """Keys in their order, and kinds of values. What depends on the answer's own words is left out."""
    if key in ("stop_reason", "finish_reason", "bytes") or (
        key == "top_logprobs" and value and "token" not in value[0]
    ):
        return "any"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_shape(v, k)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{_shape(value[0]) if value else ''}]"
    return {type(None): "null", bool: "bool", int: "number", float: "number"}.get(type(value), "text")


def _recorded() -> list[Recording]:
    """Undisturbed requests. The simulated engine has no reasoning parser, and its queue is not full."""
    beyond = ("reasoning", "queue-full", "bad-token")
    return [
        r
        for r in recordings()
        if not {"interrupted", "replay", "continuation"} & set(r.tags) and not any(word in r.name for word in beyond)
    ]


def _shapes(documents: list[Any]) -> set[str]:
    return {_shape(document) for document in documents}


@pytest.fixture(scope="module")
def answered(simulated_url: str) -> dict[str, tuple[int, set[str]]]:
    """Status and shapes of what the simulated engine sends for each recorded request."""
    found = {}
    with httpx.Client(base_url=simulated_url) as client:
        for one in _recorded():
            response = client.post(one.endpoint, content=one.body, headers=one.request_headers)
            parts = (
                response.text.split("\n\n") if "event-stream" in response.headers["content-type"] else [response.text]
            )
            data = [part.removeprefix("data: ") for part in parts]
            found[one.name] = (response.status_code, _shapes([json.loads(d) for d in data if d.startswith("{")]))
    return found


@pytest.mark.parametrize("one", _recorded(), ids=lambda one: one.name)
def test_a_recorded_request_gets_the_status_that_vllm_gave(one, answered):
    assert one.status == answered[one.name][0]


@pytest.mark.parametrize("endpoint", [CHAT, TEXT])
def test_every_shape_that_the_simulated_engine_sends_is_one_that_vllm_sends(endpoint, answered):
    recorded = [one for one in _recorded() if one.endpoint == endpoint]
    real = set().union(*(_shapes(one.answer.documents()) for one in recorded))
    simulated = set().union(*(answered[one.name][1] for one in recorded))
    assert set() == simulated - real


@pytest.mark.parametrize("endpoint", [CHAT, TEXT])
def test_every_shape_that_vllm_sends_is_one_that_the_simulated_engine_sends(endpoint, answered):
    recorded = [one for one in _recorded() if one.endpoint == endpoint]
    real = set().union(*(_shapes(one.answer.documents()) for one in recorded))
    simulated = set().union(*(answered[one.name][1] for one in recorded))
    assert set() == real - simulated

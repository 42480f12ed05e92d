"""What is read of a body, and what is added to it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from router.core.asked import Endpoint, Unreadable, append, cut_for, prepare, read, renamed, replace

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def chat(**fields):
    return read(CHAT, json.dumps({"model": "m", "messages": [], "stream": True, **fields}).encode())


def text(**fields):
    return read(TEXT, json.dumps({"model": "m", "prompt": "once", "stream": True, **fields}).encode())


class TestRead:
    @pytest.mark.parametrize(
        ("fields", "choices"),
        [
            ({}, 1),
            ({"n": None}, 1),
            ({"n": 3}, 3),
            ({"prompt": ["a", "b"]}, 2),
            ({"prompt": [1, 2, 3]}, 1),
            ({"prompt": [[1], [2]], "n": 2}, 4),
        ],
    )
    def test_a_choice_is_expected_for_each_prompt_n_times(self, fields, choices):
        assert choices == text(**fields).choices

    @pytest.mark.parametrize(
        ("asked", "limit"),
        [
            (chat(), None),
            (chat(max_tokens=7), 7),
            (chat(max_tokens=7, max_completion_tokens=5), 5),
            (text(), 16),
            (text(max_tokens=None), 16),
            (text(max_tokens=9, max_completion_tokens=5), 9),
        ],
    )
    def test_the_limit_is_the_endpoints_own(self, asked, limit):
        assert limit == asked.limit

    def test_only_a_temperature_of_nought_is_greedy(self):
        assert chat(temperature=0).greedy
        assert not chat(temperature=0.01).greedy
        assert not chat().greedy

    @pytest.mark.parametrize(
        ("fields", "forced"),
        [
            ({}, False),
            ({"response_format": {"type": "text"}}, False),
            ({"response_format": {"type": "json_object"}}, True),
            ({"response_format": "json"}, True),
            ({"structured_outputs": {"regex": "a+"}}, True),
        ],
    )
    def test_a_grammar_is_noticed(self, fields, forced):
        assert forced == chat(**fields).forced_shape

    @pytest.mark.parametrize(
        ("fields", "calls"),
        [
            ({}, False),
            ({"tools": []}, False),
            ({"tools": [{}]}, True),
            ({"functions": [{}]}, True),
            ({"tools": [{}], "tool_choice": "none"}, False),
            ({"tools": [{}], "tool_choice": "auto"}, True),
        ],
    )
    def test_tools_count_when_they_may_be_called(self, fields, calls):
        assert calls == chat(**fields).calls_tools

    @pytest.mark.parametrize(
        ("logprobs", "wanted"), [({}, False), ({"logprobs": False}, False), ({"logprobs": 0}, True)]
    )
    def test_logprobs_of_nought_are_logprobs(self, logprobs, wanted):
        assert wanted == text(**logprobs).wants_logprobs

    def test_numbers_as_text_are_read_as_the_engine_reads_them(self):
        assert 0.5 == chat(temperature="0.5").params.temperature
        assert 4 == chat(seed="4").seed
        assert chat(seed=None).seed is None
        assert chat().seed is None

    @pytest.mark.parametrize(
        ("body", "param"),
        [(b"[]", ""), (b"", ""), (b'{"n":"x"}', "n"), (b'{"stop":[1]}', "stop[0]"), (b'{"model":"\xff"}', "")],
    )
    def test_what_cannot_be_meant_is_refused_with_its_place(self, body, param):
        with pytest.raises(Unreadable) as refused:
            read(CHAT, body)
        assert param == refused.value.param
        assert str(refused.value)

    def test_streams_of_other_endpoints_are_not_resumed(self):
        asked = read("/v1/messages", b'{"stream":true}')
        assert Endpoint.OTHER is asked.endpoint
        assert asked.streams
        assert not asked.resumable
        assert asked.body is prepare(asked, token_ids=True, seed=1)

    def test_an_answer_in_one_piece_needs_nothing(self):
        asked = chat(stream=False)
        assert asked.body is prepare(asked, token_ids=True, seed=1)
        cut = cut_for(asked, token_ids=True)
        assert (False, False) == (cut.ids, cut.usage)


class TestPrepare:
    def test_what_the_router_wants_is_added_at_the_end_of_the_same_bytes(self):
        asked = chat()
        expected = asked.body[:-1] + b',"stream_options":{"include_usage":true},"return_token_ids":true,"seed":7}'
        assert expected == prepare(asked, token_ids=True, seed=7)
        cut = cut_for(asked, token_ids=True)
        assert (True, True) == (cut.ids, cut.usage)

    def test_what_the_client_asked_itself_is_not_asked_twice_nor_cut(self):
        asked = chat(stream_options={"include_usage": True}, return_token_ids=True, seed=3)
        assert asked.body is prepare(asked, token_ids=True, seed=7)
        cut = cut_for(asked, token_ids=True)
        assert (False, False) == (cut.ids, cut.usage)

    def test_what_the_client_declined_is_changed_and_cut(self):
        asked = chat(stream_options={"continuous_usage_stats": True, "x": 1}, return_token_ids=False, seed=None)
        assert asked.wants_running_usage
        sent = json.loads(prepare(asked, token_ids=True, seed=7))
        assert {"continuous_usage_stats": True, "x": 1, "include_usage": True} == sent["stream_options"]
        assert [True, 7] == [sent["return_token_ids"], sent["seed"]]
        assert cut_for(asked, token_ids=True).ids

    def test_stream_options_of_null_are_as_good_as_none(self):
        asked = chat(stream_options=None)
        assert not asked.wants_running_usage
        assert {"include_usage": True} == json.loads(prepare(asked, token_ids=False))["stream_options"]

    def test_ids_are_not_asked_of_an_engine_that_does_not_know_them(self):
        assert b"return_token_ids" not in prepare(chat(), token_ids=False)
        assert not cut_for(chat(), token_ids=False).ids

    def test_echo_forbids_ids_because_they_would_change_the_answer(self):
        asked = text(echo=True)
        assert b"return_token_ids" not in prepare(asked, token_ids=True)
        assert not cut_for(asked, token_ids=True).ids


def test_members_are_added_to_an_empty_object_too():
    assert b'{"a":1,"b":2}' == append(b"{}", {"a": b"1", "b": b"2"})
    assert b' { "a":1}' == append(b" { } \n", {"a": b"1"})


def test_nothing_added_or_replaced_is_the_same_object():
    body = b'{"a":1}'
    assert append(body, {}) is body
    assert replace(body, {}) is body


def test_a_prompt_is_held_once_in_the_body_it_came_in() -> None:
    asked = read(CHAT, b'{"messages": [{"role": "user", "content": "hello"}], "stream": true}')
    prompt, body = memoryview(asked.params.messages), memoryview(asked.body)
    at = _address(prompt) - _address(body)
    assert (True, b'[{"role": "user", "content": "hello"}]') == (0 < at < len(body), bytes(body[at:][: len(prompt)]))


def _address(of: memoryview) -> int:
    return int(np.frombuffer(of, np.uint8).ctypes.data)


def test_a_request_can_be_given_to_another_model_and_keeps_all_else_as_it_came() -> None:
    body = b'{ "model": "big", "prompt": "a\\u00e9", "x": [1, 2.50] }'
    other = renamed(read("/v1/completions", body), "org/small")
    assert ("org/small", 16) == (other.params.model, other.limit)
    assert b'{"model":"org/small","prompt":"a\\u00e9","x":[1, 2.50]}' == other.body

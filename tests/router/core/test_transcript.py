"""What is kept of an answer."""

from __future__ import annotations

import json

from router.core.asked import read
from router.core.events import DONE, event_of
from router.core.transcript import Transcript
from router.core.usage import Source, Usage, charged, render
from router.core.usage import read as read_usage

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "tiny"}


def chat(delta, *, finish=None, index=0, ids=None, top=None, **more):
    choice = {"index": index, "delta": delta, "finish_reason": finish} | more
    if ids is not None:
        choice["token_ids"] = ids
    return event_of(HEAD | {"choices": [choice]} | (top or {}))


def text(said, *, finish=None, index=0, ids=None, **more):
    choice = {"index": index, "text": said, "finish_reason": finish, "token_ids": ids} | more
    return event_of(HEAD | {"object": "text_completion", "choices": [choice]})


def folded(*events, path=CHAT, **fields):
    transcript = Transcript(read(path, json.dumps({"model": "tiny", "stream": True, **fields}).encode()))
    transcript.fold(events)
    return transcript


ROLE = chat({"role": "assistant", "content": ""}, top={"prompt_token_ids": [1, 2, 3]})
USAGE = event_of(HEAD | {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})


class TestFold:
    def test_ids_and_text_of_the_usual_stream_are_kept(self):
        seen = folded(
            ROLE, chat({"content": "é"}, ids=[7]), chat({"content": "b"}, ids=[8], finish="stop"), USAGE, DONE
        )
        choice = seen.choices[0]
        assert ([7, 8], "éb", "stop") == (choice.ids.tolist(), choice.text_of("content"), choice.finish)
        assert (HEAD, "assistant", [1, 2, 3]) == (seen.head, choice.role, choice.prompt_ids.tolist())
        assert (True, True, True, 4) == (seen.done, seen.finished, seen.totalled, seen.events)
        assert (2, 3, 2) == (seen.tokens, seen.prompt_tokens, choice.texts)

    def test_a_completion_is_kept_by_choice(self):
        events = [text("a", ids=[5], prompt_token_ids=[1]), text("x", ids=[6], index=1, prompt_token_ids=[2, 3])]
        seen = folded(*events, text("b", ids=[7]), text("c", ids=[8]), path=TEXT, prompt=["p", "q"])
        assert ("abc", "x") == (seen.choices[0].text_of("text"), seen.choices[1].text_of("text"))
        assert [5, 7, 8] == seen.choices[0].ids.tolist()
        assert 3 == seen.prompt_tokens
        assert not seen.finished

    def test_the_prompt_of_several_choices_counts_once(self):
        roles = [chat({"role": "assistant"}, index=i, top={"prompt_token_ids": [1, 2, 3]}) for i in (0, 1)]
        assert 3 == folded(*roles, n=2).prompt_tokens

    def test_reasoning_and_calls_are_kept_in_channels_of_their_own(self):
        call = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "f", "arguments": ""}}
        seen = folded(
            ROLE,
            chat({"reasoning": "hm", "reasoning_content": "hm"}, ids=[4]),
            chat({"tool_calls": [call]}, ids=[5]),
            chat({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}, ids=[6]),
            chat({"tool_calls": [{"index": 1, "function": None}], "refusal": None}, ids=[6]),
            chat({"function_call": {"name": "old", "arguments": "1"}}),
            chat({"tool_calls": None, "function_call": None}),
        )
        choice = seen.choices[0]
        channels = {name: value.decode() for name, value in choice.channels.items() if value}
        assert {
            "reasoning": "hm",
            "reasoning_content": "hm",
            "tool_calls.0.name": "f",
            "tool_calls.0.arguments": "{}",
            "function_call.name": "old",
            "function_call.arguments": "1",
        } == channels
        assert {0: "call-1"} == choice.tool_ids
        assert (0, "") == (seen.unreadable, seen.opaque)

    def test_what_is_no_text_is_noticed(self):
        assert "audio" == folded(ROLE, chat({"audio": {"data": "QQ=="}})).opaque

    def test_what_is_no_chunk_is_noticed(self):
        events = [
            b"data: <html>\n\n",
            chat({"tool_calls": [3]}),
            chat({}, ids=[-1]),
            b'data: {"choices":[{"index":"\xff"}]}\n\n',
        ]
        assert 4 == folded(ROLE, *events).unreadable

    def test_comments_are_nothing(self):
        seen = folded(b": keep-alive\n\n")
        assert (0, False, {}) == (seen.events, seen.begun, seen.head)

    def test_an_aborted_choice_has_not_ended(self):
        assert not folded(ROLE, chat({"content": ""}, finish="abort")).finished

    def test_logprobs_are_counted(self):
        entry = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}
        seen = folded(ROLE, chat({"content": "aa"}, ids=[1, 1], logprobs={"content": [entry, entry]}))
        assert 2 == seen.choices[0].entries
        lists = {"text_offset": [0, 1], "token_logprobs": [-1, -1], "tokens": ["a", "bc"], "top_logprobs": []}
        seen = folded(text("abc", ids=[1, 2], logprobs=lists), path=TEXT)
        assert (2, 3) == (seen.choices[0].entries, seen.choices[0].offset)

    def test_the_fingerprint_is_the_last_one_told(self):
        assert (
            "f2"
            == folded(
                chat({}, top={"system_fingerprint": "f1"}), chat({}, top={"system_fingerprint": "f2"})
            ).fingerprint
        )


class TestMark:
    """Where a continuation by ids may begin: after one id with its whole text."""

    def test_it_stands_after_the_last_single_id_that_brought_text(self):
        choice = folded(
            ROLE, chat({"content": "a"}, ids=[1]), chat({"content": ""}, ids=[2]), chat({}, ids=[3])
        ).choices[0]
        assert (1, 1) == (choice.mark.ids, choice.mark.text)
        choice.cut_back()
        assert [1] == choice.ids.tolist()

    def test_it_does_not_stand_behind_several_ids_at_once(self):
        choice = folded(ROLE, chat({"content": "a"}, ids=[1]), chat({"content": "bc"}, ids=[2, 3])).choices[0]
        assert (1, 1) == (choice.mark.ids, choice.mark.text)

    def test_it_stands_nowhere_without_ids(self):
        assert 0 == folded(ROLE, chat({"content": "a"})).choices[0].mark.text


class TestCounting:
    def test_without_ids_events_that_carried_text_count(self):
        seen = folded(chat({"content": "ab"}), chat({"content": ""}), chat({"content": "c"}))
        assert (2, 0, False) == (seen.tokens, seen.prompt_tokens, seen.names_ids)
        assert Usage(prompt_tokens=40, output_tokens=2, source=Source.ESTIMATED) == charged(seen, prompt_estimate=40)

    def test_with_ids_a_broken_stream_is_counted_exactly(self):
        seen = folded(ROLE, chat({"content": "ab"}, ids=[4, 5]), chat({}, ids=[6]))
        assert Usage(prompt_tokens=3, output_tokens=3, source=Source.COUNTED) == charged(seen, prompt_estimate=40)

    def test_the_engines_own_count_goes_before_ours(self):
        seen = folded(ROLE, chat({"content": "ab"}, ids=[4, 5]), USAGE)
        assert Usage(prompt_tokens=3, output_tokens=2, source=Source.ENGINE) == charged(seen)

    def test_usage_in_every_event_is_the_answers_only_when_it_has_one_choice(self):
        running = {"usage": {"prompt_tokens": 3, "completion_tokens": 1}}
        assert 1 == charged(folded(ROLE, chat({"content": "a"}, ids=[4], top=running))).output_tokens
        one = folded(ROLE, chat({"content": "a"}, ids=[4], top=running))
        two = folded(ROLE, chat({"content": "a"}, ids=[4], top=running), n=2)
        assert [(b'{"prompt_tokens":3,"completion_tokens":1}', False), (b"", False)] == [
            (one.usage, one.totalled),
            (two.usage, two.totalled),
        ]


def test_details_of_usage_are_read_and_shown_where_they_were_told():
    raw = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    usage = read_usage(json.dumps(raw).encode())
    assert Usage(prompt_tokens=9, cached_tokens=8, output_tokens=4, reasoning_tokens=3, source=Source.ENGINE) == usage
    assert raw | {"total_tokens": 13} == render(usage)
    bare = Usage(prompt_tokens=9, output_tokens=4)
    assert {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13} == render(bare)
    assert Usage(prompt_tokens=1, source=Source.ENGINE) == read_usage(b'{"prompt_tokens":1,"prompt_tokens_details":{}}')
    assert read_usage(b"") is None
    assert read_usage(b'{"input_tokens":3}') is None

"""Server-sent events: borders, what a block holds, and what is cut from it. Byte shapes are vLLM 0.32's."""

from __future__ import annotations

import msgspec
import pytest

from router.core.events import (
    DONE,
    Cut,
    EventTooLarge,
    Splitter,
    data_of,
    error_event,
    event_of,
    examine,
    is_plain,
    is_usage,
    split,
)
from router.core.glimpse import Trouble

HEAD = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1795302374,"model":"tiny",'
FIRST = HEAD + (
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
    b'"prompt_token_ids":[1,371,84],"prompt_text":null}\n\n'
)
TOKEN = HEAD + (
    b'"choices":[{"index":0,"delta":{"content":"ac"},"logprobs":null,"finish_reason":null,"token_ids":[361]}]}\n\n'
)
BARE_TOKEN = HEAD + b'"choices":[{"index":0,"delta":{"content":"ac"},"logprobs":null,"finish_reason":null}]}\n\n'
NULL_TOKEN = BARE_TOKEN.replace(b"null}]}", b'null,"token_ids":null}]}')
LAST = HEAD + (
    b'"choices":[{"index":0,"delta":{"content":"x"},"logprobs":null,"finish_reason":"length","stop_reason":null,'
    b'"token_ids":[1808]}]}\n\n'
)
ABORTED = LAST.replace(b'"length"', b'"abort"')
USAGE = HEAD + b'"choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}\n\n'
CORE_DIED = b'data: {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError"}}\n\n'
KEEP_ALIVE = b": keep-alive\n\n"


class TestSplitter:
    def test_whole_events_pass_as_the_same_object(self):
        splitter = Splitter()
        splitter.feed(TOKEN)
        assert splitter.feed(BARE_TOKEN) is BARE_TOKEN

    def test_an_incomplete_event_is_held_back_until_its_end_comes(self):
        splitter = Splitter()
        assert TOKEN == splitter.feed(TOKEN + LAST[:40])
        assert LAST[:40] == splitter.held
        assert b"" == splitter.feed(LAST[40:90])
        assert LAST == splitter.feed(LAST[90:])
        assert b"" == splitter.held

    @pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
    def test_every_line_ending_of_the_standard_ends_an_event(self, end):
        splitter = Splitter()
        event = b"data: {}" + end
        assert event + event == splitter.feed(event + event + b"data")

    def test_an_end_that_is_itself_torn_apart_is_found(self):
        splitter = Splitter()
        assert b"" == splitter.feed(b"data: 1\r\n\r")
        assert b"data: 1\r\n\r\n" == splitter.feed(b"\n")

    def test_a_byte_order_mark_at_the_start_is_dropped_even_in_pieces(self):
        splitter = Splitter()
        assert b"" == splitter.feed(b"\xef\xbb")
        assert TOKEN == splitter.feed(b"\xbf" + TOKEN)
        assert b"\xef\xbb\xbf" + TOKEN == splitter.feed(b"\xef\xbb\xbf" + TOKEN)

    def test_an_event_without_end_is_refused_at_the_limit(self):
        splitter = Splitter(limit=100)
        assert b"" == splitter.feed(b"x" * 100)
        with pytest.raises(EventTooLarge, match="101 bytes; the limit is 100"):
            splitter.feed(b"x")


class TestPlain:
    @pytest.mark.parametrize("block", [TOKEN, BARE_TOKEN])
    def test_an_event_with_tokens_needs_no_action(self, block):
        assert is_plain(block)

    @pytest.mark.parametrize(
        "block",
        [
            FIRST,
            LAST,
            ABORTED,
            USAGE,
            CORE_DIED,
            DONE,
            KEEP_ALIVE,
            TOKEN + TOKEN,
            TOKEN[:-5] + b"\n\n",
            TOKEN.replace(b"data: ", b"data:"),
            TOKEN[:-1],
            TOKEN.replace(b'"choices":', b'"choices":\n'),
            TOKEN.replace(b"choices", b"chances"),
            b"event: x\n" + TOKEN,
            b"",
        ],
    )
    def test_everything_else_is_looked_at(self, block):
        assert not is_plain(block)


class TestExamine:
    def test_several_events_at_once_are_progress(self):
        seen = examine(TOKEN + KEEP_ALIVE + TOKEN)
        assert (TOKEN + KEEP_ALIVE + TOKEN, 2, 0, None) == (seen.good, seen.events, seen.finished, seen.trouble)

    def test_a_comment_is_no_progress(self):
        assert 0 == examine(KEEP_ALIVE).events

    def test_the_end_of_a_stream_tells_its_finish_its_usage_and_that_it_is_done(self):
        seen = examine(LAST + USAGE + DONE + TOKEN)
        assert (LAST + USAGE + DONE, 2, 1, True) == (seen.good, seen.events, seen.finished, seen.done)
        assert {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2} == msgspec.json.decode(seen.usage)

    def test_a_dead_engine_core_is_an_error_though_it_says_done(self):
        seen = examine(TOKEN + CORE_DIED + DONE)
        assert (TOKEN, Trouble.ERROR, False) == (seen.good, seen.trouble, seen.done)
        assert "EngineCore encountered an issue." == seen.detail

    def test_an_aborted_choice_is_not_passed_on(self):
        seen = examine(TOKEN + ABORTED + DONE)
        assert (TOKEN, Trouble.ABORT, False) == (seen.good, seen.trouble, seen.done)

    @pytest.mark.parametrize(
        "event",
        [
            TOKEN[:-7] + b"\n\n",
            b"data: <html>\n\n",
            b'data: {"choices":{}}\n\n',
            b'data: {"error":"\xff"}\n\n',
            b"data: 3\n\n",
        ],
    )
    def test_what_is_not_json_of_the_expected_shape_is_malformed(self, event):
        seen = examine(TOKEN + event + TOKEN)
        assert (TOKEN, Trouble.MALFORMED) == (seen.good, seen.trouble)
        assert seen.detail

    @pytest.mark.parametrize(
        ("event", "said"),
        [
            (b'data: {"error":"busy"}\n\n', "busy"),
            (b'data: {"error":{}}\n\n', "the engine gave no message"),
            (b'event: error\ndata: {"type":"error","error":{"message":"Overloaded"}}\n\n', "Overloaded"),
            (b'event: response.failed\ndata: {"type":"response.failed"}\n\n', "response.failed"),
        ],
    )
    def test_an_error_is_told_in_the_engines_words(self, event, said):
        seen = examine(event)
        assert (b"", Trouble.ERROR, said) == (seen.good, seen.trouble, seen.detail)

    @pytest.mark.parametrize("last", ["message_stop", "response.completed", "response.incomplete"])
    def test_streams_that_know_no_done_mark_end_by_their_type(self, last):
        event = b"event: %b\ndata: " % last.encode() + msgspec.json.encode({"type": last}) + b"\n\n"
        seen = examine(event + KEEP_ALIVE)
        assert (True, event) == (seen.done, seen.good)

    def test_carriage_returns_change_nothing(self):
        seen = examine((TOKEN + LAST + DONE).replace(b"\n", b"\r\n"))
        assert (2, 1, True) == (seen.events, seen.finished, seen.done)

    def test_an_event_may_spread_its_json_over_lines(self):
        assert b'{"choices":\n[]}' == data_of(b'data: {"choices":\nid: 4\ndata: []}\n\n')
        assert 1 == examine(b'data: {"choices":\ndata: []}\n\n').events

    def test_an_event_without_data_is_none(self):
        assert data_of(b"data:\n\n") is None
        assert data_of(b"retry: 10\n\n") is None
        assert data_of(b"data: \n\n") is None


class TestCut:
    def test_our_ids_are_cut_and_the_rest_is_kept_to_the_byte(self):
        cut = Cut(ids=True, usage=True)
        assert NULL_TOKEN == cut.quick(TOKEN)
        assert FIRST.replace(b"[1,371,84]", b"null") == cut.any(FIRST)

    def test_a_completion_whose_first_event_names_both_loses_both(self):
        event = event_of({"choices": [{"index": 0, "text": "a", "token_ids": [1], "prompt_token_ids": [2, 3]}]})
        expected = event_of({"choices": [{"index": 0, "text": "a", "token_ids": None, "prompt_token_ids": None}]})
        assert expected == Cut(ids=True, usage=True).any(event)

    def test_nothing_to_cut_is_the_same_object(self):
        assert Cut(ids=True, usage=True).quick(BARE_TOKEN) is BARE_TOKEN
        assert Cut(ids=False, usage=False).quick(TOKEN) is TOKEN
        block = TOKEN + USAGE
        assert Cut(ids=False, usage=False).any(block) is block

    def test_text_that_speaks_of_token_ids_is_left_alone(self):
        event = event_of({"choices": [{"delta": {"content": 'say ,"token_ids":[1,2], and ],"prompt_token_ids":[3]'}}]})
        assert event == Cut(ids=True, usage=True).any(event)

    def test_the_usage_event_goes_only_when_it_was_ours(self):
        block = LAST + USAGE + DONE
        assert LAST + DONE == Cut(ids=False, usage=True).any(block)
        assert block == Cut(ids=False, usage=False).any(block)

    def test_an_event_that_exists_only_because_we_asked_for_ids_is_left_out(self):
        nothing = HEAD + b'"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":null,"token_ids":[7]}]}\n\n'
        counted = nothing.replace(b"}]}", b'}],"usage":{"prompt_tokens":1}}')
        assert b"" == Cut(ids=True, usage=True).quick(nothing)
        assert TOKEN == Cut(ids=True, usage=False).any(nothing + counted + TOKEN).replace(b"null}]}", b"[361]}]}")
        assert nothing == Cut(ids=False, usage=False).quick(nothing)

    def test_the_fingerprint_of_a_cut_usage_event_moves_to_the_event_before_it(self):
        usage = USAGE.replace(b"}\n\n", b',"system_fingerprint":"vllm-1"}\n\n')
        expected = LAST[:-3] + b',"system_fingerprint":"vllm-1"}\n\n'
        assert expected + DONE == Cut(ids=False, usage=True).any(LAST + usage + DONE)

    def test_several_events_are_cut_each(self):
        assert NULL_TOKEN + NULL_TOKEN + DONE == Cut(ids=True, usage=True).any(TOKEN + TOKEN + USAGE + DONE)

    def test_only_an_event_without_choices_is_the_usage_event(self):
        assert is_usage(USAGE)
        assert not is_usage(TOKEN.replace(b'"choices"', b'"usage":{},"choices"'))
        assert not is_usage(TOKEN)
        assert not is_usage(CORE_DIED)
        assert not is_usage(DONE)
        assert not is_usage(KEEP_ALIVE)


def test_split_events_join_to_the_block_they_came_from():
    block = TOKEN + KEEP_ALIVE + b"\n" + DONE + b"data: rest"
    assert block == b"".join(split(block))
    torn = block.replace(b"\n", b"\r\n")
    assert [torn.count(b"\r\n\r\n") + 1, torn] == [len(split(torn)), b"".join(split(torn))]


def test_an_error_event_has_openais_shape():
    event = error_event("the engine died", kind="server_error", code="upstream_failed")
    payload = data_of(event)
    assert payload is not None
    assert {
        "error": {"message": "the engine died", "type": "server_error", "param": None, "code": "upstream_failed"}
    } == msgspec.json.decode(payload)
    assert Trouble.ERROR == examine(event).trouble

"""The events of a new leg become the events that the broken stream would have had."""

from __future__ import annotations

import json

import pytest

from router.core.asked import read
from router.core.continuation import plan
from router.core.events import DONE, event_of
from router.core.seam import Diverged
from router.core.splice import Splice, closing
from router.core.transcript import Transcript
from router.core.usage import Source, Usage
from tests.router.core.answers import assemble, documents

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def head(chat, number):
    kind, name = ("chat.completion.chunk", "chatcmpl") if chat else ("text_completion", "cmpl")
    return {"id": f"{name}-{number}", "object": kind, "created": number, "model": "m"}


def said(delta, *, ids=None, finish=None, index=0, number=1, logprobs=None, top=None):
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    if ids is not None:
        choice["token_ids"] = ids
    return event_of(head(True, number) | {"choices": [choice]} | (top or {}))


def role(number=1, index=0):
    return said({"role": "assistant", "content": ""}, number=number, index=index, top={"prompt_token_ids": [1, 2, 3]})


def text(word, *, ids=None, finish=None, index=0, number=2, logprobs=None, **more):
    choice = {"index": index, "text": word, "logprobs": logprobs, "finish_reason": finish, "stop_reason": None}
    return event_of(head(False, number) | {"choices": [choice | {"token_ids": ids} | more]})


def usage(number=2, *, chat=False, **counts):
    return event_of(head(chat, number) | {"choices": [], "usage": counts, "system_fingerprint": "f"})


def spliced(events, *, path=CHAT, sent=b"{}", **fields):
    """A splice behind the delivered events, the transcript, and what was delivered."""
    body = {"model": "m", "stream": True, "temperature": 0, "max_tokens": 9, **fields}
    asked = read(path, json.dumps(body).encode())
    transcript = Transcript(asked)
    transcript.fold(events)
    return Splice(plan(asked, transcript, sent=sent), transcript, asked), transcript


class TestByIds:
    def test_a_completion_goes_on_as_the_chat_it_was(self):
        delivered = [role(), said({"content": "a"}, ids=[7])]
        splice, transcript = spliced(delivered)
        leg = [text("b", ids=[8], prompt_token_ids=[1, 2, 3, 7]), text("c", ids=[9], finish="stop")]
        counts = {"prompt_tokens": 4, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
        out = splice.feed(b"".join([*leg, usage(**counts), DONE]))
        first, last, total = documents(out)
        assert (
            head(True, 1)
            | {
                "choices": [
                    {"index": 0, "delta": {"content": "b"}, "logprobs": None, "finish_reason": None, "token_ids": [8]}
                ]
            }
            == first
        )
        assert ("stop", None) == (last["choices"][0]["finish_reason"], last["choices"][0]["stop_reason"])
        assert {
            "prompt_tokens": 3,
            "completion_tokens": 3,
            "total_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 3},
        } == total["usage"]
        assert ("f", head(True, 1)["id"]) == (total["system_fingerprint"], total["id"])
        assert out.endswith(DONE)
        assert splice.whole
        transcript.fold([out])
        assert ([7, 8, 9], "abc", True) == (
            transcript.choices[0].ids.tolist(),
            transcript.choices[0].text_of("content"),
            transcript.finished,
        )
        assert Usage(prompt_tokens=4, cached_tokens=4, output_tokens=2, source=Source.ENGINE) == splice.cost()

    def test_a_leg_that_breaks_is_counted_by_its_ids(self):
        splice, _ = spliced([role(), said({"content": "a"}, ids=[7])])
        splice.feed(text("bc", ids=[8, 9]))
        assert Usage(prompt_tokens=4, output_tokens=2, source=Source.COUNTED) == splice.cost()
        assert not splice.whole

    def test_held_back_ids_are_compared_and_their_text_comes(self):
        splice, _ = spliced([role(), said({"content": "a"}, ids=[7]), said({}, ids=[8])])
        assert b"" == splice.feed(text("", ids=[8]))
        (event,) = documents(splice.feed(text("é", ids=[9])))
        assert ({"content": "é"}, [9]) == (event["choices"][0]["delta"], event["choices"][0]["token_ids"])

    def test_an_event_over_the_seam_is_cut_there(self):
        splice, _ = spliced([role(), said({"content": "a"}, ids=[7]), said({"content": "bé"}, ids=[8, 9])])
        (event,) = documents(splice.feed(text("béc", ids=[8, 9, 10])))
        assert ({"content": "c"}, [10]) == (event["choices"][0]["delta"], event["choices"][0]["token_ids"])

    def test_a_sample_forgets_the_held_back_ids_that_nobody_saw(self):
        splice, transcript = spliced([role(), said({"content": "a"}, ids=[7]), said({}, ids=[8])], temperature=1)
        assert [7] == transcript.choices[0].ids.tolist()
        transcript.fold([splice.feed(text("x", ids=[30]))])
        assert ([7, 30], "ax") == (transcript.choices[0].ids.tolist(), transcript.choices[0].text_of("content"))

    @pytest.mark.parametrize("event", [text("", ids=[5]), text("", finish="stop"), text("x")])
    def test_other_ids_than_the_held_back_ones_are_a_difference(self, event):
        splice, _ = spliced([role(), said({"content": "a"}, ids=[7]), said({}, ids=[8])])
        with pytest.raises(Diverged):
            splice.feed(event)

    def test_several_choices_keep_their_numbers_and_the_end_waits_for_the_last(self):
        delivered = [role(), role(index=1), said({"content": "a"}, ids=[7]), said({"content": "a"}, ids=[7], index=1)]
        delivered += [said({"content": "b"}, ids=[8])]
        splice, transcript = spliced(delivered, n=2, temperature=1)
        out = splice.feed(text("c", ids=[9], finish="stop") + usage(prompt_tokens=5, completion_tokens=1) + DONE)
        transcript.fold([out])
        assert splice.whole
        assert (1, False, b"") == (len(documents(out)), transcript.done, transcript.usage)
        asked = transcript.asked
        splice = Splice(plan(asked, transcript, sent=b""), transcript, asked)
        out = splice.feed(text("z", ids=[6], finish="stop") + DONE)
        event, total = documents(out)
        assert 1 == event["choices"][0]["index"]
        assert {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8} == total["usage"]
        transcript.fold([out])
        assert transcript.done

    def test_a_sampled_choice_that_has_not_begun_comes_with_the_others(self):
        splice, _ = spliced([role(), said({"content": "a"}, ids=[7])], n=2, temperature=1, max_tokens=None)
        events = documents(splice.feed(text("b", ids=[8]) + text("z", ids=[5], index=1)))
        assert [(0, [8]), (1, [5])] == [(e["choices"][0]["index"], e["choices"][0]["token_ids"]) for e in events]

    def test_a_choice_nobody_asked_for_is_a_difference(self):
        splice, _ = spliced([role(), said({"content": "a"}, ids=[7])])
        with pytest.raises(Diverged, match="nobody asked"):
            splice.feed(text("b", ids=[8], index=1))

    def test_an_engine_that_repeats_its_prompt_is_stopped_before_the_client_sees_it(self):
        delivered = [role(), said({"content": "the answer"}, ids=[7])]
        splice, _ = spliced(delivered)
        with pytest.raises(Diverged, match="prompt"):
            splice.feed(text("system: never tell anyone this secret. user: hello. the answer is", ids=[8]))
        splice, _ = spliced(delivered)
        splice.feed(text("", ids=[8]))
        with pytest.raises(Diverged, match="prompt"):
            splice.feed(text("system: never tell anyone this secret. user: hello. the answer is", ids=[9]))

    def test_a_leg_without_end_for_its_choices_is_not_whole(self):
        splice, _ = spliced([role(), said({"content": "a"}, ids=[7])])
        assert b"" == splice.feed(DONE)
        assert not splice.whole

    def test_logprobs_of_a_chat_are_rebuilt(self):
        entry = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}
        splice, _ = spliced([role(), said({"content": "a"}, ids=[7], logprobs={"content": [entry]})], logprobs=True)
        lists = {"text_offset": [0], "token_logprobs": [-0.5], "tokens": ["é"], "top_logprobs": [{"é": -0.5}]}
        (event,) = documents(splice.feed(text("é", ids=[8], logprobs=lists)))
        expected = {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": []}
        assert {"content": [expected]} == event["choices"][0]["logprobs"]

    def test_offsets_of_a_completions_logprobs_go_on_counting(self):
        def lists(at, *words):
            return {
                "text_offset": at,
                "tokens": list(words),
                "token_logprobs": [-1.0] * len(words),
                "top_logprobs": None,
            }

        first = text("ab", ids=[7], number=1, logprobs=lists([0], "ab"), prompt_token_ids=[1])
        held = text("", ids=[8], number=1, logprobs=lists([2], "é"))
        splice, _ = spliced([first, held], path=TEXT, logprobs=1)
        (event,) = documents(splice.feed(text("éc", ids=[8, 9], logprobs=lists([0, 1], "é", "c"))))
        assert {"text_offset": [3], "tokens": ["c"], "token_logprobs": [-1.0], "top_logprobs": None} == (
            event["choices"][0]["logprobs"]
        )
        assert (1, [9]) == (event["created"], event["choices"][0]["token_ids"])
        assert "prompt_token_ids" not in event["choices"][0]

    def test_comments_pass_and_events_without_choices_keep_the_head(self):
        splice, _ = spliced([role(), said({"content": "a"}, ids=[7])])
        assert b": keep-alive\n\n" == splice.feed(b": keep-alive\n\n")
        assert [head(True, 1) | {"choices": []}] == documents(splice.feed(event_of(head(False, 2) | {"choices": []})))


class TestReplay:
    def test_what_was_delivered_is_dropped_and_the_rest_keeps_the_first_head(self):
        splice, _ = spliced([role(), said({"content": "ab"}, ids=[7])], seed=1, temperature=1)
        assert b"" == splice.feed(role(number=2))
        out = splice.feed(said({"content": "abc"}, ids=[7, 8], number=2))
        assert [
            head(True, 1)
            | {
                "choices": [
                    {"index": 0, "delta": {"content": "c"}, "logprobs": None, "finish_reason": None, "token_ids": [8]}
                ]
            }
        ] == documents(out)
        out = splice.feed(said({}, ids=[9], finish="stop", number=2) + usage(chat=True, prompt_tokens=3) + DONE)
        assert "f" == documents(out)[1]["system_fingerprint"]
        assert {"chatcmpl-1"} == {event["id"] for event in documents(out)}
        assert (True, True) == (splice.whole, out.endswith(DONE))

    def test_an_event_without_content_passes_behind_the_seam_only(self):
        splice, _ = spliced([role(), said({"content": "ab"})], seed=1)
        assert b"" == splice.feed(role(number=2) + said({"content": ""}, number=2) + said({"content": "ab"}, number=2))
        assert 1 == len(documents(splice.feed(said({"content": ""}, number=2))))

    def test_a_stream_that_never_began_is_the_new_one(self):
        splice, _ = spliced([])
        leg = role(number=2) + said({"content": "a"}, ids=[7], number=2)
        assert documents(leg) == documents(splice.feed(leg))

    def test_a_client_without_ids_gets_none_of_a_replay(self):
        splice, _ = spliced([said({"role": "assistant"}), said({"content": "ab"})], seed=1, temperature=1)
        (event,) = documents(splice.feed(said({"content": "abc"}, ids=[7, 8], number=2)))
        assert "token_ids" not in event["choices"][0]

    @pytest.mark.parametrize(
        "leg",
        [
            said({"content": "ax"}, ids=[7]),
            said({"content": "ab"}, ids=[9]),
            said({"content": "abc"}),
            said({"content": "a"}, finish="stop"),
            said({"reasoning": "hm"}, ids=[7]),
            said({"content": "abc"}, ids=[7, 8], number=2).replace(b'"index":0', b'"index":"0"'),
        ],
    )
    def test_any_difference_stops_the_splice(self, leg):
        splice, _ = spliced([role(), said({"content": "ab"}, ids=[7])], seed=1, temperature=1)
        with pytest.raises(Diverged):
            splice.feed(leg)

    def test_a_choice_that_ended_must_end_the_same(self):
        delivered = [role(), role(index=1), said({"content": "a"}, ids=[7], finish="stop")]
        again = said({"content": "a"}, ids=[7], number=2, finish="stop")
        splice, _ = spliced(delivered, n=2, seed=1, temperature=1)
        assert b"" == splice.feed(role(number=2) + again)
        assert b"" == splice.feed(DONE)
        assert not splice.whole
        for leg in (
            said({"content": "a"}, ids=[7], finish="length"),
            said({}, finish="stop"),
            said({"content": "ab"}, ids=[7, 8]),
        ):
            splice, _ = spliced(delivered, n=2, seed=1, temperature=1)
            with pytest.raises(Diverged):
                splice.feed(leg)

    def test_a_tool_call_keeps_the_id_the_client_has(self):
        def call(number, function, **more):
            return said({"tool_calls": [{"index": 0, **more, "function": function}]}, number=number)

        delivered = [said({"role": "assistant"}), call(1, {"name": "f", "arguments": ""}, id="call-1", type="function")]
        delivered += [call(1, {"arguments": '{"a":'})]
        splice, _ = spliced(delivered, tools=[{}])
        opening = call(2, {"name": "f", "arguments": ""}, id="call-2", type="function")
        assert b"" == splice.feed(opening)
        (event,) = documents(splice.feed(call(2, {"arguments": '{"a": 1}'.replace(" ", "")})))
        assert [{"index": 0, "function": {"arguments": "1}"}}] == event["choices"][0]["delta"]["tool_calls"]
        second = {"index": 1, "id": "call-3", "type": "function", "function": {"name": "g", "arguments": ""}}
        (event,) = documents(splice.feed(said({"tool_calls": [second]}, number=2)))
        assert [second] == event["choices"][0]["delta"]["tool_calls"]
        other = {"index": 1, "id": "call-4"}
        (event,) = documents(splice.feed(said({"tool_calls": [other]}, number=2)))
        assert [other] == event["choices"][0]["delta"]["tool_calls"]

    def test_the_old_shape_of_a_call_is_cut_too(self):
        delivered = [said({"role": "assistant"}), said({"function_call": {"name": "f", "arguments": "{"}})]
        splice, _ = spliced(delivered, functions=[{}])
        assert b"" == splice.feed(said({"function_call": {"name": "f", "arguments": ""}}, number=2))
        (event,) = documents(splice.feed(said({"function_call": {"arguments": "{}"}}, number=2)))
        assert {"arguments": "}"} == event["choices"][0]["delta"]["function_call"]
        passed = said({"function_call": None, "tool_calls": None}, number=2)
        assert 1 == len(documents(splice.feed(passed)))

    def test_logprobs_are_neither_lost_nor_repeated(self):
        entries = [{"token": word, "logprob": -1.0, "bytes": [97], "top_logprobs": []} for word in "abc"]
        delivered = [role(), said({"content": "ab"}, ids=[7, 8], logprobs={"content": entries[:2]})]
        splice, _ = spliced(delivered, logprobs=True, top_logprobs=1)
        assert b"" == splice.feed(said({"content": "a"}, ids=[7], number=2, logprobs={"content": entries[:1]}))
        leg = said({"content": "bc"}, ids=[8, 9], number=2, logprobs={"content": entries[1:], "refusal": None})
        (event,) = documents(splice.feed(leg))
        assert {"content": entries[2:], "refusal": None} == event["choices"][0]["logprobs"]

    def test_a_new_choice_of_the_replay_is_all_new(self):
        delivered = [role(), said({"content": "a"}, ids=[7])]
        splice, _ = spliced(delivered, n=2, seed=1, temperature=1)
        leg = role(number=2, index=1)
        (event,) = documents(splice.feed(leg))
        assert {"role": "assistant", "content": ""} == event["choices"][0]["delta"]

    def test_an_unknown_field_of_a_delta_passes_with_its_event(self):
        splice, _ = spliced([role()], seed=1)
        (event,) = documents(splice.feed(said({"audio": None, "content": "a"}, ids=[7], number=2)))
        assert {"audio": None, "content": "a"} == event["choices"][0]["delta"]


class TestBehindTheSeam:
    """Where all is new, only the head and the number of the choice change, and that is done in fewer steps."""

    def chat_word(self, word, token, number, **more):
        choice = {"index": 0, "delta": {"content": word}, "logprobs": None, "finish_reason": None, "token_ids": [token]}
        return event_of(head(True, number) | {"choices": [choice]} | more)

    def test_a_replay_keeps_every_byte_but_the_head(self):
        splice, _ = spliced([role(), said({"content": "a"}, ids=[7])], seed=1, temperature=1)
        splice.feed(role(number=2) + self.chat_word("a", 7, 2))
        more = {"service_tier": "x"}
        assert self.chat_word("b", 8, 1, **more) == splice.feed(self.chat_word("b", 8, 2, **more))
        assert 2 == splice.cost().output_tokens

    def test_a_chat_by_ids_has_its_events_rebuilt(self):
        splice, _ = spliced([role(), said({"content": "a"}, ids=[7])])
        assert self.chat_word("b", 8, 1) == splice.feed(text("b", ids=[8]))
        assert self.chat_word("c", 9, 1) == splice.feed(text("c", ids=[9]))

    def test_a_completion_that_was_renumbered_keeps_its_number(self):
        first = [text("a", ids=[5], number=1, prompt_token_ids=[1, 2], finish="stop")]
        second = [text("b", ids=[6], number=1, index=1)]
        splice, _ = spliced([*first, *second], path=TEXT, n=2, temperature=1)
        events = [event for word in "cde" for event in documents(splice.feed(text(word, ids=[7])))]
        assert [(1, 1, [7])] * 3 == [
            (e["choices"][0]["index"], e["created"], e["choices"][0]["token_ids"]) for e in events
        ]

    def test_a_completion_keeps_every_byte_but_the_head(self):
        splice, _ = spliced([text("a", ids=[5], number=1, prompt_token_ids=[1, 2])], path=TEXT)
        splice.feed(text("b", ids=[6]))
        assert text("c", ids=[7], number=1) == splice.feed(text("c", ids=[7]))

    def test_an_engine_with_another_head_goes_the_long_way(self):
        splice, _ = spliced([role(), said({"content": "a"}, ids=[7])], seed=1, temperature=1)
        plain = {"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"content": "a"}, "token_ids": [7]}]}
        splice.feed(event_of(plain))
        plain["choices"] = [{"index": 0, "delta": {"content": "b"}, "token_ids": [8]}]
        (event,) = documents(splice.feed(event_of(plain)))
        assert head(True, 1) == {name: event[name] for name in head(True, 1)}


class TestClosing:
    END = (role(), said({"content": "a"}, ids=[7], finish="stop"))

    def test_the_missing_end_is_made_from_what_was_counted(self):
        _, transcript = spliced(self.END)
        out = closing(transcript)
        assert [(3, 1, 4)] == assemble(b"".join(self.END) + out)["usage"]
        assert out.endswith(DONE)

    def test_a_usage_that_was_delivered_is_not_repeated(self):
        _, transcript = spliced([*self.END, usage(1, chat=True, prompt_tokens=3, completion_tokens=1)])
        assert DONE == closing(transcript)

    def test_a_usage_that_could_only_be_guessed_is_left_out(self):
        _, transcript = spliced([said({"content": "a"}, finish="stop")])
        assert DONE == closing(transcript)

    def test_nothing_is_missing_behind_done(self):
        _, transcript = spliced([*self.END, usage(1, chat=True, prompt_tokens=3, completion_tokens=1), DONE])
        assert b"" == closing(transcript)

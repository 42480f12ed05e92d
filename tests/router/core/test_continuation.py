"""How a broken stream is to go on: which way, with which body, and why not."""

from __future__ import annotations

import json

import pytest

from router.core.asked import Endpoint, prepare, read
from router.core.continuation import Pace, Way, plan
from router.core.events import event_of
from router.core.obstacles import KNOWN, needs_seed, obstacle
from router.core.params import Usual
from router.core.transcript import Transcript

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
GREEDY = {"temperature": 0, "max_tokens": 10}
MESSAGES = [{"role": "user", "content": "hello"}]


def chat(**fields):
    body = {"model": "m", "messages": MESSAGES, "stream": True, **fields}
    return read(CHAT, json.dumps(body).encode())


def text(**fields):
    return read(TEXT, json.dumps({"model": "m", "prompt": "once", "stream": True, **fields}).encode())


def event(index=0, *, said="", ids=(), prompt=None, finish=None, **delta):
    choice = {"index": index, "delta": {"content": said, **delta}, "finish_reason": finish, "token_ids": list(ids)}
    return event_of(
        {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        | ({"prompt_token_ids": prompt} if prompt else {})
    )


ROLE = event(prompt=[1, 2, 3], role="assistant")


def folded(asked, *events):
    transcript = Transcript(asked)
    transcript.fold(events)
    return transcript


def planned(asked, *events, **known):
    return plan(asked, folded(asked, *events), sent=prepare(asked, token_ids=True), **known)


class TestByIds:
    def test_the_leg_starts_from_the_ids_of_prompt_and_answer_with_what_is_left_of_the_limits(self):
        asked = chat(**GREEDY, min_tokens=3, top_p=0.9, user="u", messages=MESSAGES, logit_bias={"5": -100}, top_k=None)
        made = planned(asked, ROLE, event(said="a", ids=[7]), event(said="b", ids=[8]))
        assert (Way.IDS, Endpoint.COMPLETIONS, (0,), True) == (made.way, made.endpoint, made.choices, made.exact)
        assert {
            "model": "m",
            "prompt": [1, 2, 3, 7, 8],
            "temperature": 0,
            "top_p": 0.9,
            "user": "u",
            "logit_bias": {"5": -100},
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "max_tokens": 8,
            "min_tokens": 1,
        } == json.loads(made.body)
        assert (5, 0) == (made.prefill_tokens, made.redone_tokens)

    def test_ids_whose_text_is_held_back_are_generated_again(self):
        made = planned(chat(**GREEDY), ROLE, event(said="a", ids=[7]), event(ids=[8]))
        assert [1, 2, 3, 7] == json.loads(made.body)["prompt"]
        assert 1 == made.redone_tokens

    def test_a_chat_without_limit_leaves_it_to_the_engine_not_to_the_other_endpoints_default(self):
        made = planned(chat(temperature=0), ROLE, event(said="a", ids=[7]))
        assert json.loads(made.body)["max_tokens"] is None
        assert "min_tokens" not in json.loads(made.body)

    def test_a_completion_has_its_default_limit_reduced_and_keeps_its_logprobs(self):
        made = planned(text(temperature=0, logprobs=3), event(said="a", ids=[7], prompt=[1]))
        body = json.loads(made.body)
        assert (15, 3) == (body["max_tokens"], body["logprobs"])

    def test_a_chats_logprobs_come_without_alternatives(self):
        made = planned(chat(**GREEDY, logprobs=True), ROLE, event(said="a", ids=[7]))
        assert 0 == json.loads(made.body)["logprobs"]

    def test_an_unseeded_sample_goes_on_fairly_but_not_equally(self):
        made = planned(chat(), ROLE, event(said="a", ids=[7]))
        assert (Way.IDS, False) == (made.way, made.exact)
        assert "without a seed" in made.reason

    def test_choices_with_the_same_limits_go_on_together_and_others_wait(self):
        roles = [event(i, prompt=[1, 2], role="assistant") for i in range(3)]
        asked = chat(n=3, max_tokens=10)
        made = planned(asked, *roles, event(0, said="a", ids=[5]), event(1, said="b", ids=[6]))
        assert ((0, 1), [[1, 2, 5], [1, 2, 6]]) == (made.choices, json.loads(made.body)["prompt"])
        made = planned(asked, *roles, event(0, said="a", ids=[5], finish="stop"), event(1, said="b", ids=[6]))
        assert ((1,), [1, 2, 6]) == (made.choices, json.loads(made.body)["prompt"])

    def test_an_image_is_seen_however_its_type_is_spelled(self):
        body = b'{"messages":[{"content":[{"\\u0074ype":"image_url"}]}],"stream":true,"temperature":0}'
        assert "images" in obstacle(read(CHAT, body))

    def test_members_that_are_read_with_the_others_stand_against_nothing(self):
        assert set() == set(Usual.__struct_fields__) - KNOWN

    def test_a_choice_that_has_not_begun_shares_the_prompt_of_its_family(self):
        asked = chat(n=2)
        made = planned(asked, event(0, said="a", ids=[5], prompt=[1, 2]))
        assert [[1, 2, 5], [1, 2]] == json.loads(made.body)["prompt"]

    def test_content_behind_reasoning_goes_on(self):
        asked = chat(**GREEDY)
        made = planned(asked, ROLE, event(ids=[4], reasoning="hm"), event(ids=[5]), event(said="a", ids=[6]))
        assert Way.IDS is made.way


class TestReplay:
    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"seed": 1}, "dice"),
            ({"temperature": 0, "presence_penalty": 1}, "penalties"),
            ({"temperature": 0, "frequency_penalty": 0.5}, "penalties"),
            ({"temperature": 0, "response_format": {"type": "json_object"}}, "grammar"),
            ({"temperature": 0, "tools": [{}]}, "parser"),
            ({"temperature": 0, "stop": "x"}, "stop strings"),
            ({"temperature": 0, "bad_words": ["x"]}, "bad words"),
            ({"temperature": 0, "echo": True}, "echo"),
            ({"temperature": 0, "best_of": 2}, "best"),
            ({"temperature": 0, "logprobs": True, "top_logprobs": 2}, "alternatives"),
            ({"temperature": 0, "stream_options": {"continuous_usage_stats": True}}, "usage in every event"),
            ({"temperature": 0, "vllm_xargs": {}}, "'vllm_xargs' is not known"),
            ({"temperature": 0, "messages": [{"content": [{"type": "image_url"}]}]}, "images"),
            ({"temperature": 0, "messages": 3}, "images"),
            ({"temperature": 0, "messages": "user"}, "images"),
        ],
    )
    def test_what_ids_cannot_carry_is_asked_again(self, fields, why):
        asked = chat(**fields)
        made = planned(asked, ROLE, event(said="a", ids=[7]))
        assert (Way.REPLAY, CHAT, True) == (made.way, made.endpoint, made.exact)
        assert why in made.reason
        assert prepare(asked, token_ids=True) == made.body

    @pytest.mark.parametrize(
        "fields",
        [
            {"presence_penalty": 0, "stop": [], "tools": [], "response_format": {"type": "text"}, "seed": 4},
            {"tools": [{}], "tool_choice": "none", "metadata": {"a": 1}, "reasoning_effort": "low", "vllm_xargs": None},
            {"messages": [{"content": [{"type": "text"}, "plain"]}, {"content": None}]},
            {"messages": None},
        ],
    )
    def test_what_makes_no_difference_does_not_forbid_ids(self, fields):
        assert "" == obstacle(chat(temperature=0, **fields))

    def test_a_sample_with_our_seed_is_replayed_where_ids_cannot(self):
        asked = chat(stop="x")
        assert needs_seed(asked)
        assert Way.REPLAY is planned(asked, ROLE, event(said="a", ids=[7]), seeded=True).way
        assert needs_seed(chat(return_token_ids=True))
        assert needs_seed(chat(logprobs=True))
        assert not needs_seed(chat())
        assert not needs_seed(chat(stop="x", seed=1))
        assert not needs_seed(chat(stop="x", temperature=0))
        assert not needs_seed(chat(stop="x", stream=False))

    def test_a_sampled_chat_of_a_model_that_thinks_gets_our_seed(self):
        assert needs_seed(chat(), thinks=True)
        assert not needs_seed(chat(seed=1), thinks=True)
        assert not needs_seed(chat(temperature=0), thinks=True)
        assert not needs_seed(chat(stream=False), thinks=True)
        assert not needs_seed(text(), thinks=True)

    def test_what_has_our_seed_is_never_drawn_anew(self):
        asked = chat(return_token_ids=True)
        made = planned(asked, ROLE, event(said="a", ids=[7]), seeded=True)
        assert (Way.REPLAY, True) == (made.way, made.exact)

    def test_before_the_first_token_any_request_is_sent_again(self):
        made = planned(chat(stop="x"), ROLE)
        assert (Way.REPLAY, "no token was delivered yet") == (made.way, made.reason)
        assert Way.REPLAY is planned(chat()).way

    def test_the_shorter_wait_wins(self):
        asked = chat(**GREEDY, n=1)
        events = (ROLE, event(said="a", ids=[7]))
        assert Way.IDS is planned(asked, *events, pace=Pace(prefill_ms=0.05, decode_ms=20)).way
        assert Way.REPLAY is planned(asked, *events, pace=Pace(prefill_ms=50, decode_ms=1)).way

    @pytest.mark.parametrize(
        ("events", "why"),
        [
            ((event(role="assistant"), event(said="a", ids=[7])), "the ids of the prompt never came"),
            ((ROLE, event(said="a")), "named no ids"),
            ((ROLE, event(ids=[7], reasoning="hm")), "reasoning is still open"),
            ((ROLE, event(ids=[7], reasoning="hm"), event(said="ab", ids=[8, 9])), "reasoning is still open"),
            ((ROLE, *[event(said="a", ids=[i]) for i in range(10)]), "no token is left"),
        ],
    )
    def test_what_was_delivered_may_forbid_ids(self, events, why):
        made = planned(chat(**GREEDY), *events)
        assert Way.REPLAY is made.way
        assert why in made.reason

    def test_an_engine_that_takes_no_ids_is_asked_again(self):
        made = planned(chat(**GREEDY), ROLE, event(said="a", ids=[7]), ids_supported=False)
        assert (Way.REPLAY, "not by ids: the engine takes no token ids") == (made.way, made.reason)


class TestEnds:
    def test_a_whole_answer_lacks_only_its_end(self):
        assert Way.FINISH is planned(chat(), ROLE, event(said="a", ids=[7], finish="stop")).way

    @pytest.mark.parametrize(
        ("asked", "events", "known", "why"),
        [
            (chat(stop="x"), (ROLE, event(said="a", ids=[7])), {}, "comes out differently every time"),
            (chat(**GREEDY), (ROLE, event(audio={})), {}, "cannot compare"),
            (chat(**GREEDY), (ROLE, event(said="a", ids=[7]), b"data: x\n\n"), {}, "cannot read"),
            (chat(), (ROLE, event(said="ab", ids=[7, 8])), {}, "bundled"),
            (chat(logprobs=True), (ROLE, event(said="a", ids=[7]), event(ids=[8])), {}, "sampled anew"),
            (chat(return_token_ids=True), (ROLE, event(said="a", ids=[7]), event(ids=[8])), {}, "sampled anew"),
        ],
    )
    def test_what_no_way_can_do_is_refused_with_both_reasons(self, asked, events, known, why):
        made = planned(asked, *events, **known)
        assert (Way.REFUSE, b"") == (made.way, made.body)
        assert why in made.reason

    def test_a_bundle_would_be_no_obstacle_once_an_engine_has_spelled_it(self):
        assert Way.IDS is planned(chat(), ROLE, event(said="ab", ids=[7, 8]), settled=True).way
        assert Way.REFUSE is planned(chat(logprobs=True), ROLE, event(said="a", ids=[7, 8]), settled=True).way

    def test_other_endpoints_and_whole_answers_are_refused(self):
        assert Way.REFUSE is planned(read("/v1/messages", b'{"stream":true}')).way
        assert Way.REFUSE is planned(chat(stream=False)).way

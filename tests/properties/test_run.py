"""Keeping usual events as text and ids tells the same as keeping them whole, for any text and any recorded answer."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.asked import Asked, read
from router.core.continuation import Plan, plan
from router.core.events import event_of
from router.core.transcript import Transcript
from router.resume import Story
from tests.properties.test_events import TEXT
from tests.properties.test_transcript import WHOLE, contents
from tests.recordings.library import recording
from tests.router.core.answers import good

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "tiny"}
ASKED = read("/v1/chat/completions", b'{"model": "tiny", "stream": true, "temperature": 0}')
NAMELESS = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None, "token_ids": None}


def event(word: str, ids: list[int]) -> bytes:
    choice = {"index": 0, "delta": {"content": word}, "logprobs": None, "finish_reason": None, "token_ids": ids}
    return event_of(HEAD | {"choices": [choice]})


def passed(asked: Asked, events: list[bytes]) -> tuple[bytes, Story]:
    """What the client gets, as the relay asks for it."""
    story = Story(asked, token_ids=True, seed=None)
    leg, out = story.first_leg(), []
    for one in events:
        said = leg.take(one)
        if said is None:
            said = leg.quick(one)
        out.append(leg.any(one) if said is None else said)
    return b"".join(out), story


def packed(events: list[bytes], packs: set[int]) -> Story:
    """Of a stream whose sweeps come behind these events."""
    story = Story(ASKED, token_ids=True, seed=None)
    leg = story.first_leg()
    for at, one in enumerate(events):
        if leg.take(one) is None:
            leg.quick(one)
        if at in packs:
            leg.pack()
    return story


def whole(asked: Asked, events: list[bytes]) -> Transcript:
    transcript = Transcript(asked)
    transcript.fold(events)
    return transcript


def comparable(transcript: Transcript) -> dict[str, object]:
    seen = contents(transcript)
    return seen | {"choices": {index: choice | {"channels": None} for index, choice in seen["choices"].items()}}


def texts(transcript: Transcript) -> dict[int, dict[str, str]]:
    return {i: {name: choice.text_of(name) for name in choice.channels} for i, choice in transcript.choices.items()}


@given(st.lists(st.tuples(TEXT, st.lists(st.integers(0, 200_000), min_size=1, max_size=2)), max_size=12))
def test_any_texts_and_ids_are_kept_and_cut_as_by_decoding(tokens):
    events = [event("a", [1]), *(event(word, ids) for word, ids in tokens)]
    out, story = passed(ASKED, events)
    expected = whole(ASKED, events)
    assert story.cut.any(b"".join(events)) == out
    assert comparable(expected) == comparable(story.fold())
    assert texts(expected) == texts(story.fold())


@pytest.mark.parametrize("name", WHOLE)
def test_a_recorded_answer_is_kept_as_by_decoding(name):
    one = recording(name)
    asked = read(one.endpoint, one.body.encode())
    events = list(good(one.answer.events()))
    _, story = passed(asked, events)
    expected = whole(asked, events)
    assert comparable(expected) == comparable(story.fold())
    assert texts(expected) == texts(story.fold())


@given(st.lists(TEXT, max_size=30), st.sets(st.integers(0, 300)), st.integers(1, 10))
def test_packing_at_any_time_loses_nothing(words, packs, times):
    events = [event(word, [number]) for number, word in enumerate(["a", *words * times])]
    story, expected = packed(events, packs), whole(ASKED, events)
    assert comparable(expected) == comparable(story.fold())
    assert texts(expected) == texts(story.fold())


@given(st.sets(st.integers(0, 300)))
def test_packing_loses_nothing_where_an_engine_names_no_ids(packs):
    events = [event_of(HEAD | {"choices": [NAMELESS | {"delta": {"content": f"word {n}"}}]}) for n in range(300)]
    story = packed(events, packs)
    assert story.run.count == len(events) - 1
    assert texts(story.fold()) == {0: {"content": "".join(f"word {n}" for n in range(300))}}
    assert not story.fold().names_ids


@given(st.integers(0, 12))
def test_a_stream_can_be_continued_from_wherever_its_run_stands(at):
    events = [event(word, [number]) for number, word in enumerate("abcdefghijklm")][: at + 1]
    _, story = passed(ASKED, events)
    assert plan_of(whole(ASKED, events)) == plan_of(story.fold())


def plan_of(transcript: Transcript) -> Plan:
    return msgspec.structs.replace(plan(ASKED, transcript, sent=ASKED.body), reason="")

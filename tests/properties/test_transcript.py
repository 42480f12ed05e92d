"""A transcript is the same however its blocks were folded, and counts what real vLLM counted."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.asked import read
from router.core.transcript import Transcript
from router.core.usage import Source, charged
from router.core.usage import read as read_usage
from tests.recordings.library import Recording, recording, recordings
from tests.router.core.answers import blocks_of, good

WHOLE = [
    one.name
    for one in recordings()
    if one.answer.streamed and one.status == 200 and one.ending == "complete"
    if not {"interrupted", "error", "continuation"} & set(one.tags)
]
STREAMED = [one.name for one in recordings() if one.answer.streamed and "error" not in one.tags]


def empty(one: Recording) -> Transcript:
    return Transcript(read(one.endpoint, one.body.encode()))


def contents(transcript: Transcript) -> dict[str, Any]:
    choices = {
        index: {name: getattr(choice, name) for name in choice.__slots__}
        for index, choice in transcript.choices.items()
    }
    heard = {name: getattr(transcript, name) for name in transcript.__slots__ if name != "asked"}
    return heard | {"choices": choices}


@given(st.sampled_from(STREAMED), st.randoms(use_true_random=False), st.integers(0, 700))
def test_folding_in_any_portions_gives_the_same_transcript_and_usage(name, rng, at):
    one = recording(name)
    events = one.answer.events()[:at]
    whole, portions = empty(one), empty(one)
    whole.fold(good(events))
    blocks = list(good(blocks_of(events, rng)))
    while blocks:
        size = rng.randrange(1, 9)
        portions.fold(blocks[:size])
        blocks = blocks[size:]
    assert contents(whole) == contents(portions)
    assert charged(whole) == charged(portions)


@pytest.mark.parametrize("name", WHOLE)
def test_ids_counted_equal_what_the_engine_counted(name):
    one = recording(name)
    transcript = empty(one)
    transcript.fold(good(blocks_of(one.answer.events(), random.Random(1))))
    assert (True, True, 0, "") == (transcript.done, transcript.finished, transcript.unreadable, transcript.opaque)
    reported = read_usage(transcript.usage)
    if reported is None or not transcript.names_ids:
        return
    transcript.usage = b""
    counted = charged(transcript)
    assert Source.COUNTED is counted.source
    assert (reported.prompt_tokens, reported.output_tokens) == (counted.prompt_tokens, counted.output_tokens)

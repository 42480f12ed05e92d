"""A broken and continued answer equals the unbroken one, wherever it broke: on recorded streams of real vLLM.

Everything a client can see is compared: text by channel, token ids, logprobs, tool calls, finish and stop reason,
usage, one role, one head. Replays and some continuations are recorded too; where a split has no recorded continuation,
the rest of the recorded answer is sent in the shape of one, in other pieces.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from router.core.asked import Asked, Endpoint, cut_for, read
from router.core.continuation import Plan, Way
from router.core.events import event_of, examine
from router.core.transcript import Transcript
from tests.recordings.library import Recording, recording, recordings
from tests.router.core.answers import assemble, carry, comparable, continued, documents, good

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
TROUBLES = ("core-killed", "api-killed", "slept", "terminated", "silent")


def asked_of(one: Recording) -> Asked:
    return read(one.endpoint, one.body.encode())


@cache
def whole_answer(name: str) -> dict[str, Any]:
    return comparable(assemble(recording(name).answer.body))


def streams(*, longest: int) -> list[str]:
    """Recorded streams that ended well and name their ids."""
    return [
        one.name
        for one in recordings()
        if one.name.endswith("-ids") and one.answer.streamed and one.status == 200 and not one.continues
        if one.ending == "complete" and not {"interrupted", "error"} & set(one.tags)
        if len(one.answer.events()) <= longest
    ]


def breaking_again(whole: Recording, rng: random.Random, breaks: int) -> Any:
    """A leg as planned, broken again at a random place for the first few times."""
    left = [breaks]

    def leg(made: Plan, transcript: Transcript) -> list[bytes]:
        events = whole.answer.events()
        if made.way is Way.IDS:
            events = continued(events, made, transcript, rng)
        left[0] -= 1
        return events if left[0] < 0 else events[: rng.randrange(len(events) + 1)]

    return leg


def resumed(name: str, at: int, rng: random.Random, breaks: int, **known: Any) -> tuple[bytes, list[Plan]]:
    whole = recording(name)
    leg = breaking_again(whole, rng, breaks)
    return carry(asked_of(whole), whole.answer.events()[:at], leg, rng=rng, **known)


@pytest.mark.parametrize("name", streams(longest=150))
def test_an_answer_that_broke_at_any_event_is_whole_again(name):
    for at in range(len(recording(name).answer.events()) + 1):
        stream, _ = resumed(name, at, random.Random(at), breaks=at % 3)
        assert whole_answer(name) == comparable(assemble(stream)), f"broken after {at} events"


@given(
    st.sampled_from(streams(longest=10_000)), st.integers(0, 700), st.randoms(use_true_random=False), st.integers(0, 4)
)
def test_an_answer_that_broke_several_times_is_whole_again(name, at, rng, breaks):
    stream, plans = resumed(name, at, rng, breaks)
    assert whole_answer(name) == comparable(assemble(stream))
    assert all(made.exact for made in plans)


@pytest.mark.parametrize("name", [one.name for one in recordings("replay")])
def test_a_recorded_replay_takes_over_at_any_event(name):
    again = recording(name)
    whole = recording(again.continues)
    events = whole.answer.events()
    for at in range(0, len(events) - 3, 3):
        stream, _ = carry(
            asked_of(whole), events[:at], lambda *_: again.answer.events(), rng=random.Random(at), ids_supported=False
        )
        assert whole_answer(whole.name) == comparable(assemble(stream)), f"broken after {at} events"


def clean_break(whole: Recording, after: int) -> int | None:
    """The number of events after which a plan would go on behind just so many ids."""
    asked = asked_of(whole)
    transcript = Transcript(asked)
    for at, event in enumerate(whole.answer.events()):
        if transcript.begun and after == transcript.choices[0].mark.ids == len(transcript.choices[0].ids):
            return at
        transcript.fold([event])
    return None


def continuations() -> Iterator[tuple[str, int]]:
    for one in recordings("continuation"):
        whole = recording(one.continues)
        if "interrupted" in whole.tags or asked_of(whole).choices > 1:
            continue
        at = clean_break(whole, one.after)
        if at is not None:
            yield one.name, at


@pytest.mark.parametrize(("name", "at"), list(continuations()))
def test_a_recorded_continuation_is_what_the_plan_asks_for_and_completes_the_answer(name, at):
    rest = recording(name)
    whole = recording(rest.continues)
    stream, plans = carry(
        asked_of(whole),
        whole.answer.events()[:at],
        lambda made, _: rest.answer.events() if made.way is Way.IDS else whole.answer.events(),
        rng=random.Random(at),
    )
    assert whole_answer(whole.name) == comparable(assemble(stream))
    if plans[0].way is Way.IDS:
        body = documents(b"data: " + plans[0].body + b"\n\n")[0]
        assert rest.request == body


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("endpoint", ["chat", "text"])
def test_each_recorded_trouble_is_seen_and_survived(endpoint, trouble):
    broken = recording(f"{endpoint}-{trouble}-ids")
    reference = recording(f"{endpoint}-reference-ids")
    rest = next(one for one in recordings("continuation") if one.continues == broken.name)
    asked = asked_of(broken)
    arrived = broken.answer.events()
    assert not examine(b"".join(arrived)).done

    transcript = Transcript(asked)
    transcript.fold(good(arrived))
    clean = transcript.choices[0].mark.ids == rest.after  # else a bundle came last, and the leg was recorded from there
    leg = rest if clean else reference
    stream, plans = carry(asked, arrived, lambda *_: leg.answer.events(), rng=random.Random(1), ids_supported=clean)
    assert [Way.IDS if clean else Way.REPLAY] == [made.way for made in plans]
    assert whole_answer(reference.name) == comparable(assemble(stream))


@given(st.sampled_from(streams(longest=10_000)), st.integers(0, 700), st.randoms(use_true_random=False))
def test_what_the_client_gets_is_what_the_sdk_expects_and_only_what_it_asked(name, at, rng):
    whole = recording(name)
    body = {**whole.request}
    del body["return_token_ids"]
    body.pop("stream_options", None)
    asked = read(whole.endpoint, msgspec.json.encode(body))
    if asked.wants_running_usage:
        return
    stream, _ = carry(asked, whole.answer.events()[:at], breaking_again(whole, rng, 1), rng=rng)
    seen = cut_for(asked, token_ids=True).any(stream)
    chunk = ChatCompletionChunk if asked.endpoint is Endpoint.CHAT else Completion
    for event in documents(seen):
        for choice in event["choices"] if chunk is Completion else ():
            choice["finish_reason"] = choice["finish_reason"] or "stop"  # its type knows no stream, where it is null
        chunk.model_validate(event, strict=False)
    answer = comparable(assemble(seen))
    expected = comparable(assemble(whole.answer.body))
    assert [] == answer["usage"]
    for index, choice in expected["choices"].items():
        assert {**choice, "ids": []} == answer["choices"][index]


@given(
    st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=12),
    st.integers(0, 12),
    st.randoms(use_true_random=False),
)
def test_a_replay_in_any_other_pieces_is_joined_at_the_right_character(words, at, rng):
    asked = read("/v1/chat/completions", b'{"stream":true,"temperature":0}')
    whole, again = (chat_of(pieces) for pieces in (words, repieced("".join(words), rng)))
    stream, _ = carry(asked, whole[: min(at, len(words) + 1)], lambda *_: again, rng=rng)
    assert comparable(assemble(b"".join(whole))) == comparable(assemble(stream))


def chat_of(words: list[str]) -> list[bytes]:
    """A chat without token ids, as many engines stream it."""
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}, *({"content": word} for word in words), {}]
    return [
        *(
            event_of(HEAD | {"choices": [{"index": 0, "delta": delta, "finish_reason": "stop" if not delta else None}]})
            for delta in deltas
        ),
        event_of(HEAD | {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}),
        b"data: [DONE]\n\n",
    ]


def repieced(said: str, rng: random.Random) -> list[str]:
    """The same text in other pieces, some of them empty."""
    cuts = sorted(rng.randrange(len(said) + 1) for _ in range(rng.randrange(6)))
    return [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]

"""What the recordings themselves promise to the property tests that are built on them."""

from __future__ import annotations

import pytest

from tests.recordings.library import Recording, recording, recordings

UNDISTURBED = [one for one in recordings() if not {"continuation", "replay", "interrupted", "error"} & set(one.tags)]


def _whole(one: Recording) -> Recording:
    """The undisturbed recording of what this one continues."""
    start = recording(one.continues)
    if "interrupted" not in start.tags:
        return start
    return recording(f"{start.name.split('-')[0]}-reference-ids")


@pytest.mark.parametrize("one", recordings("continuation"), ids=lambda one: one.name)
def test_a_continuation_by_ids_and_its_start_are_the_whole_stream(one: Recording) -> None:
    start, whole = recording(one.continues).answer, _whole(one).answer
    assert whole.token_ids(one.choice) == start.token_ids(one.choice)[: one.after] + one.answer.token_ids()


@pytest.mark.parametrize("one", recordings("replay"), ids=lambda one: one.name)
def test_a_replay_gives_the_same_tokens_and_text(one: Recording) -> None:
    first = recording(one.continues).answer
    for choice in first.indices():
        assert first.token_ids(choice) == one.answer.token_ids(choice)
        assert first.text(choice) == one.answer.text(choice)


@pytest.mark.parametrize("one", recordings(), ids=lambda one: one.name)
def test_the_pieces_add_up_and_every_event_is_one_data_line(one: Recording) -> None:
    assert one.answer.wire == b"".join(one.pieces())
    for event in one.answer.events() if one.answer.streamed else ():
        assert event.startswith(b"data: ")
        assert event.endswith(b"\n\n")
        assert event.count(b"\n") == 2
        assert b"\r" not in event


@pytest.mark.parametrize("one", UNDISTURBED, ids=lambda one: one.name)
def test_an_undisturbed_stream_names_a_finish_reason_for_each_choice_and_ends_with_done(one: Recording) -> None:
    assert (one.ending, one.status) == ("complete", 200)
    for choice in one.answer.indices():
        reasons = [part["finish_reason"] for part in one.answer.choices(choice)]
        assert reasons[-1] in {"stop", "length", "tool_calls"}
        assert not any(reasons[:-1])
    if one.answer.streamed:
        assert one.answer.events()[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize(
    ("trouble", "ending", "sign"),
    [
        ("core-killed", "complete", b'data: {"error": {"message": "EngineCore'),
        ("api-killed", "eof", b""),
        ("slept", "complete", b'"finish_reason":"abort"'),
        ("silent", "silent", b""),
    ],
)
def test_a_trouble_looks_as_described(kind: str, trouble: str, ending: str, sign: bytes) -> None:
    one = recording(f"{kind}-{trouble}-ids")
    assert ending == one.ending
    assert sign in one.answer.body
    assert 60 <= len(one.answer.token_ids()) < 240


def test_some_event_carries_a_hundred_tokens_and_some_carry_none_with_text() -> None:
    counts = [
        len(part["token_ids"]) for part in recording("chat-frozen-api-ids").answer.choices() if "token_ids" in part
    ]
    assert max(counts) > 100
    parts = list(recording("chat-unicode-ids").answer.choices())
    assert sum(part["delta"] == {} for part in parts) > len(parts) / 2

"""Up to which token the text of a bundled stream was delivered, asked of an engine that spells ids."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from router.core.continuation import Way, plan
from router.core.spelling import HELD_IDS, settle, unsettled
from router.core.transcript import Transcript
from tests.router.core.test_continuation import ROLE, chat, event, folded

WORDS = (b"a", b" a", b"bc", b" the", "\u00e9".encode(), "\u4f60".encode())
HALVES = tuple(bytes([byte]) for byte in "\U0001f642\u4f60".encode())
PIECES = (*WORDS, *HALVES)
SPECIAL = len(PIECES)
"""A token that is spelled, and that no client sees."""


def spelled(ids: list[int], *, special: bytes = b"<|end|>") -> str:
    return b"".join(special if token == SPECIAL else PIECES[token] for token in ids).decode(errors="replace")


async def spell(ids: list[int]) -> str:
    return spelled(ids)


def bundled(*bundles: list[int]) -> Transcript:
    """What an engine delivers of these: no text while all of it ends within a character."""
    ids, said, events = list[int](), "", [ROLE]
    for bundle in bundles:
        before = len(said)
        for token in bundle:
            ids.append(token)
            text = spelled(ids, special=b"")
            said = said if text.endswith("\ufffd") else text
        events.append(event(said=said[before:], ids=bundle))
    return folded(chat(), *events)


async def settled(transcript: Transcript) -> list[int]:
    """The ids that the stream goes on from."""
    for choice in unsettled(transcript):
        await settle(choice, spell)
    choice = transcript.choices[0]
    return choice.ids[: choice.mark.ids].tolist()


A, BLANK_A, BC, THE, E_ACUTE, YOU = range(len(WORDS))
SMILE = list(range(len(WORDS), len(WORDS) + 4))


async def test_a_bundle_that_was_delivered_whole_is_gone_on_from_its_end():
    transcript = bundled([A], [BC, THE])
    assert [A, BC, THE] == await settled(transcript)
    assert [] == unsettled(transcript)
    made = plan(chat(), transcript, sent=b"")
    assert (Way.IDS, [1, 2, 3, A, BC, THE]) == (made.way, json.loads(made.body)["prompt"])


async def test_half_a_character_at_the_end_of_a_bundle_is_left_out():
    transcript = bundled([A], [BC, THE, *SMILE[:3]])
    assert [A, BC, THE] == await settled(transcript)
    assert 3 == plan(chat(), transcript, sent=b"").redone_tokens


async def test_a_character_of_many_tokens_that_was_delivered_is_kept():
    assert [A, BC, *SMILE] == await settled(bundled([A], [BC, *SMILE]))


async def test_a_token_that_only_a_tokenizer_shows_is_no_difference():
    assert [A, SPECIAL, BC, THE] == await settled(bundled([A, SPECIAL, BC, THE]))
    assert [A, SPECIAL, BC, SPECIAL, *SMILE] == await settled(bundled([A, SPECIAL, BC, SPECIAL, *SMILE]))


async def test_such_a_token_at_the_end_is_drawn_anew():
    assert [A, BC] == await settled(bundled([A, BC, SPECIAL]))


async def test_where_logprobs_are_counted_nothing_is_left_out():
    transcript = bundled([BC, A, SMILE[0]])
    transcript.choices[0].entries = 3
    assert [] == await settled(transcript)
    assert 1 == len(unsettled(transcript))


async def test_a_blank_that_only_a_tokenizer_knows_of_is_no_difference_at_the_start():
    transcript = folded(chat(), ROLE, event(said="the a", ids=[THE, BLANK_A]))
    assert [THE, BLANK_A] == await settled(transcript)


async def test_where_nobody_can_spell_nothing_is_settled():
    transcript = bundled([A, BC])

    async def silent(ids: list[int]) -> None:
        return None

    await settle(transcript.choices[0], silent)
    assert 1 == len(unsettled(transcript))


async def test_an_engine_that_spells_something_else_settles_nothing():
    transcript = bundled([A, BC])

    async def foreign(ids: list[int]) -> str:
        return "x" * len(ids)

    await settle(transcript.choices[0], foreign)
    assert 1 == len(unsettled(transcript))


def test_text_without_ids_has_nothing_to_spell():
    assert [] == unsettled(folded(chat(), ROLE, event(said="bc")))


def test_a_choice_that_ended_needs_no_settling():
    assert [] == unsettled(folded(chat(), ROLE, event(said="bc", ids=[8, 9], finish="stop")))


TOKENS = st.integers(0, SPECIAL)


@given(st.lists(st.lists(TOKENS, min_size=1, max_size=7), min_size=1, max_size=8))
async def test_whatever_was_bundled_a_settled_stream_goes_on_from_just_what_was_delivered(bundles):
    transcript = bundled(*bundles)
    begins = await settled(transcript)
    choice = transcript.choices[0]
    assert choice.main[: choice.mark.text].decode() == spelled(begins, special=b"")


@given(
    st.lists(st.sampled_from([*range(len(WORDS))]), min_size=1, max_size=40),
    st.lists(st.sampled_from(SMILE), max_size=HELD_IDS),
    st.data(),
)
async def test_words_with_special_tokens_among_them_are_always_settled(words, tail, data):
    places = data.draw(st.lists(st.integers(0, len(words) - 1), max_size=5))
    for place in places:
        words.insert(place, SPECIAL)
    assert words == await settled(bundled(words + tail)) or spelled(tail).rstrip("\ufffd")

"""The toy tokenizer and the toy model: what resume and replay may rely on."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.engines.simulated.answer import Answer, Delta, Sampling
from node_agent.engines.simulated.tokens import (
    EOS,
    IM_START,
    PIECES,
    VOCAB_SIZE,
    Model,
    chat_ids,
    decode,
    encode,
    piece,
    piece_id,
    prefix_hashes,
)

PROMPT = chat_ids([("user", "Where does the signal go?")], generation_prompt=True, open_last=False)


def answer(ids: list[int], limit: int = 400, *, seed: int | None = None, penalised: bool = False, **more) -> Answer:
    state, blocks = prefix_hashes(ids, 7, 16)
    model = Model(state, ids, blocks=blocks, seed=seed, penalised=penalised)
    return Answer(model, Sampling(max_tokens=limit, **more))


def say(one: Answer) -> list[Delta]:
    deltas = []
    while not deltas or deltas[-1].finish is None:
        deltas.append(one.take())
    return deltas


def ids_of(deltas: list[Delta]) -> list[int]:
    return [i for d in deltas for i in d.ids]


def text_of(deltas: list[Delta]) -> str:
    return "".join(d.text for d in deltas)


@settings(deadline=None)
@given(st.text())
def test_every_text_has_ids_and_comes_back(text):
    ids = encode(text)
    assert text == decode(ids)
    assert all(0 <= i < VOCAB_SIZE for i in ids)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=4).filter(lambda b: len(b) < 4 or max(b) < 128))
def test_a_piece_of_any_bytes_has_an_id_of_its_own(data):
    assert data == piece(piece_id(data))
    assert piece_id(data) >= len(PIECES)


def test_ids_fit_into_31_bits():
    assert VOCAB_SIZE < 1 << 31


def test_english_takes_three_to_four_bytes_a_token():
    text = "The signal at the end of the yard had turned red, and every wagon waited patiently for the morning. " * 20
    assert 3 < len(text) / len(encode(text)) < 5


def test_what_the_model_said_is_read_back_as_the_tokens_it_was_said_in():
    said = ids_of(say(answer(PROMPT, ignore_eos=True)))
    assert said == encode(decode(said))


def test_special_tokens_have_no_text_and_frame_chat_messages():
    assert "" == decode([IM_START, EOS])
    open_ids = chat_ids([("user", "a"), ("assistant", "b")], generation_prompt=False, open_last=True)
    assert encode("b") == open_ids[-1:]
    assert (3, 2) == (PROMPT.count(IM_START) + 1, PROMPT.count(EOS) + 1)


def test_the_hash_of_a_prefix_is_a_hash_of_all_before_it():
    state, blocks = prefix_hashes(list(range(40)), 7, 16)
    assert (blocks[0], 2) == (prefix_hashes(list(range(16)), 7, 16)[0], len(blocks))
    assert blocks[1] != prefix_hashes([99, *range(1, 32)], 7, 16)[0]
    assert state != prefix_hashes(list(range(40)), 8, 16)[0]


@settings(deadline=None)
@given(cut=st.integers(1, 150), prompt=st.text(min_size=1, max_size=40))
def test_a_greedy_answer_goes_on_from_ids_exactly_and_ends_where_it_would_have(cut, prompt):
    ids = encode(prompt)
    whole = ids_of(say(answer(ids)))
    cut = min(cut, len(whole) - 1)
    if cut:
        assert whole[cut:] == ids_of(say(answer(ids + whole[:cut], 400 - cut)))


def test_a_sampled_answer_can_be_replayed_with_its_seed_but_not_continued_from_ids():
    whole = ids_of(say(answer(PROMPT, 60, seed=3, ignore_eos=True)))
    assert whole == ids_of(say(answer(PROMPT, 60, seed=3, ignore_eos=True)))
    assert whole != ids_of(say(answer(PROMPT, 60, seed=4, ignore_eos=True)))
    assert whole[20:] != ids_of(say(answer(PROMPT + whole[:20], 40, seed=3, ignore_eos=True)))


def test_an_answer_with_penalties_can_be_replayed_but_not_continued_from_ids():
    whole = ids_of(say(answer(PROMPT, 60, penalised=True, ignore_eos=True)))
    assert whole == ids_of(say(answer(PROMPT, 60, penalised=True, ignore_eos=True)))
    assert whole[20:] != ids_of(say(answer(PROMPT + whole[:20], 40, penalised=True, ignore_eos=True)))


def test_blocks_that_an_answer_fills_are_named_as_if_they_were_prompt():
    one = answer(PROMPT, 50, ignore_eos=True)
    said = ids_of(say(one))
    assert prefix_hashes(PROMPT + said, 7, 16)[1] == one.model.blocks


def test_some_tokens_have_no_text_yet_and_the_next_ones_bring_it():
    deltas = say(answer(PROMPT, 2000, ignore_eos=True))
    silent = [i for i, d in enumerate(deltas) if d.text == ""]
    assert 10 < len(silent) < 200
    assert all(deltas[i + 1].text for i in silent[:-1])
    assert decode(ids_of(deltas)).startswith(text_of(deltas[:-1]))
    assert "�" not in text_of(deltas[:-1])


def test_half_a_character_at_the_end_becomes_a_replacement_character():
    deltas = say(answer(PROMPT, 2000, ignore_eos=True))
    cut = next(i for i, d in enumerate(deltas) if d.text == "") + 1
    last = say(answer(PROMPT, cut, ignore_eos=True))[-1]
    assert ("length", True) == (last.finish, last.text.endswith("�"))


def test_answers_differ_in_length_and_end_by_themselves():
    lengths = [len(say(answer(encode(f"prompt {i}"), 5000))) for i in range(40)]
    assert len(set(lengths)) > 20
    assert 30 < sum(lengths) / 40 < 800


def test_eos_is_a_token_without_text_and_stops():
    last = say(answer(PROMPT, 5000))[-1]
    assert ([EOS], "", "stop", None) == (last.ids, last.text, last.finish, last.stop_reason)


def test_min_tokens_and_ignore_eos_hold_back_the_end():
    natural = len(say(answer(PROMPT, 5000)))
    assert natural < len(say(answer(PROMPT, 5000, min_tokens=natural + 10)))
    forced = say(answer(PROMPT, natural + 50, ignore_eos=True))
    assert (natural + 50, "length") == (len(forced), forced[-1].finish)


def test_a_stop_string_cuts_the_text_before_it_and_says_which():
    plain = text_of(say(answer(PROMPT, 200, ignore_eos=True)))
    stop = plain[40:46]
    deltas = say(answer(PROMPT, 200, ignore_eos=True, stop=(stop, "never said this")))
    assert plain[: plain.index(stop)] == text_of(deltas)
    assert ("stop", stop) == (deltas[-1].finish, deltas[-1].stop_reason)


def test_a_stop_string_can_be_kept():
    plain = text_of(say(answer(PROMPT, 200, ignore_eos=True)))
    stop = plain[40:46]
    deltas = say(answer(PROMPT, 200, ignore_eos=True, stop=(stop,), include_stop=True))
    assert plain[: plain.index(stop) + len(stop)] == text_of(deltas)


def test_text_that_may_begin_a_stop_string_is_held_back_until_the_end():
    plain = say(answer(PROMPT, 60, ignore_eos=True))
    held = say(answer(PROMPT, 60, ignore_eos=True, stop=("never said this",)))
    for n in range(1, 60):
        behind = len(text_of(plain[:n])) - len(text_of(held[:n]))
        assert 0 <= behind <= len("never said this") - 1
    assert text_of(plain) == text_of(held)


def test_a_stop_token_ends_without_its_text():
    plain = say(answer(PROMPT, 60, ignore_eos=True))
    token = plain[10].ids[0]
    first = next(i for i, d in enumerate(plain) if d.ids == [token])
    deltas = say(answer(PROMPT, 60, ignore_eos=True, stop_token_ids=(token,)))
    assert text_of(plain[:first]) == text_of(deltas)
    assert ("stop", token) == (deltas[-1].finish, deltas[-1].stop_reason)


def test_deltas_that_gather_are_one_delta():
    deltas = say(answer(PROMPT, 30, ignore_eos=True))
    one = deltas[0]
    for later in itertools.islice(deltas, 1, None):
        one.merge(later)
    whole = say(answer(PROMPT, 30, ignore_eos=True))
    assert (ids_of(whole), text_of(whole), "length") == (one.ids, one.text, one.finish)

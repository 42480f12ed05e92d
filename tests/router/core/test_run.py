"""Usual events are told by their bytes, cut to the byte, and kept as text and ids; anything else is left alone."""

from __future__ import annotations

import json

import pytest

from router.core.asked import read
from router.core.events import event_of
from router.core.run import Run
from router.core.transcript import Transcript

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "tiny"}
TEXT_ONLY = {"stop_reason": None, "prompt_token_ids": None}


def chat(word, ids=None, *, name="content", **more):
    choice = {"index": 0, "delta": {name: word}, "logprobs": None, "finish_reason": None, "token_ids": ids} | more
    return event_of(HEAD | {"choices": [choice]})


def text(word, ids=None):
    choice = {"index": 0, "text": word, "logprobs": None, "finish_reason": None} | TEXT_ONLY
    return event_of(HEAD | {"object": "text_completion", "choices": [choice | {"token_ids": ids}]})


def run_of(first, *, cut_ids=True):
    run = Run(cut_ids=cut_ids)
    run.learn(first)
    return run


@pytest.mark.parametrize("event", [chat, text])
def test_a_usual_event_loses_its_ids_and_nothing_else(event):
    run = run_of(event("a", [1]))
    assert [event(" b", None), event("\n\u00e9", None)] == [
        run.take(event(" b", [22])),
        run.take(event("\n\u00e9", [3])),
    ]
    assert (2, (" b\n\u00e9", [22, 3])) == (run.count, drained(run))
    assert 0 == run.count


def chunk(event):
    return b"%x\r\n%b\r\n" % (len(event), event)


def taken(run, data):
    return run.take(data, data.index(b"\n") + 1)


@pytest.mark.parametrize("ids", [[1], [22], [128_000]])
@pytest.mark.parametrize("word", ["b", "\n\u00e9", "a longer word " * 20])
def test_an_event_that_is_a_chunk_is_given_as_one(word, ids):
    run = run_of(chat("a", [1]))
    assert chunk(chat(word, None)) == taken(run, chunk(chat(word, ids)))
    assert (word, ids) == drained(run)


@pytest.mark.parametrize("ids", [[2], None])
def test_a_chunk_from_which_nothing_is_to_be_cut_is_given_as_it_is(ids):
    data = chunk(chat("b", ids))
    assert data is taken(run_of(chat("a", ids), cut_ids=False), data)


@pytest.mark.parametrize("ids", [[2], None])
@pytest.mark.parametrize("end", [b"", b"\r", b"\r\n0\r\n\r\n", b"\r\n\r\n", b"xx"])
def test_a_chunk_that_ends_in_another_way_needs_a_closer_look(ids, end):
    run = run_of(chat("a", ids))
    event = chat("b", ids)
    assert taken(run, b"%x\r\n%b%b" % (len(event), event, end)) is None


def test_a_client_that_asked_for_ids_gets_them():
    run = run_of(chat("a", [1]), cut_ids=False)
    assert chat("b", [2]) == run.take(chat("b", [2]))
    assert ("b", [2]) == drained(run)


def test_an_engine_that_names_no_ids_has_usual_events_too():
    run = run_of(chat("a"))
    assert chat("b") == run.take(chat("b"))
    assert run.take(chat("b", [2])) is None
    assert run.take(chat("b") + b": a comment\n\n") is None
    assert run.take(chat("b") + chat("b")) is None
    assert ("b", []) == drained(run)


@pytest.mark.parametrize(
    "other",
    [
        chat("", [2]),
        chat("b", [2, 3]),
        chat("b", []),
        chat("b", [2])[:-1],
        chat("b", [2], finish_reason="stop"),
        chat("b", [2], name="reasoning"),
        chat("b", [2]) + chat("c", [3]),
        chat("b", [2]).replace(b'"b"', b'"b","reasoning":"c"'),
        chat("b", [2]).replace(b'"b"', b'"b\n"'),
        chat("b\\", [2]),
        chat('b\\"', [2]),
        event_of(HEAD | {"id": "chatcmpl-2", "choices": []}),
        b": a comment\n\n",
    ],
)
def test_all_else_needs_a_closer_look_and_is_not_kept(other):
    run = run_of(chat("a", [1]))
    assert run.take(other) is None
    assert 0 == run.count


def test_a_quote_that_is_escaped_ends_no_text():
    run = run_of(chat("a", [1]))
    assert chat('say "b"', None) == run.take(chat('say "b"', [2]))
    assert ('say "b"', [2]) == drained(run)


@pytest.mark.parametrize(
    "first",
    [
        chat("assistant", [1], name="role"),
        chat("a", [1], stop_reason=7),
        chat("a", [1]).replace(b'{"content":"a"}', b'{"content":"a"'),
        b"data: [DONE]\n\n",
    ],
)
def test_from_an_event_that_is_not_usual_nothing_is_learned(first):
    assert run_of(first).take(first) is None


def test_a_stream_that_goes_over_to_another_channel_is_learned_again():
    run = run_of(chat("thus", [1], name="reasoning"))
    run.learn(chat("b", [2]))
    run.learn(chat("b", [2]))
    assert chat("c", None) == run.take(chat("c", [3]))
    assert ("content", ("c", [3])) == (run.channel, drained(run))


def test_a_run_folds_to_what_its_events_fold_to():
    asked = read("/v1/chat/completions", json.dumps({"model": "tiny", "stream": True}).encode())
    events = [chat("\u00e9", [1]), chat("b", [2]), chat("c", [3])]
    whole, parts, run = Transcript(asked), Transcript(asked), run_of(events[0])
    whole.fold(events)
    parts.fold(events[:1])
    for event in events[1:]:
        run.take(event)
    parts.take_run(run)
    assert ("\u00e9bc", [1, 2, 3], 3, 3) == seen(parts)
    assert seen(whole) == seen(parts)
    assert whole.choices[0].mark == parts.choices[0].mark


def test_text_without_ids_counts_events_and_marks_no_border():
    run, transcript = run_of(chat("a")), Transcript(read("/v1/chat/completions", b'{"stream": true}'))
    run.take(chat("b"))
    transcript.take_run(run)
    assert ("b", [], 1, 1, 0) == (*seen(transcript), transcript.choices[0].mark.text)


@pytest.mark.parametrize("ids", [b"007", b"4294967296"])
def test_what_is_no_json_is_found_when_the_run_is_read(ids):
    run, transcript = run_of(chat("a", [1])), Transcript(read("/v1/chat/completions", b'{"stream": true}'))
    run.take(chat("b", [2]).replace(b"[2]", b"[%b]" % ids))
    run.take(chat("b", [2]))
    transcript.take_run(run)
    assert (2, {}, 0) == (transcript.unreadable, transcript.choices, run.count)


def drained(run):
    text, ids = run.drain()
    return text, ids.tolist()


def seen(transcript):
    choice = transcript.choices[0]
    return choice.text_of("content"), choice.ids.tolist(), choice.texts, transcript.events

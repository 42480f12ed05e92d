"""Cutting and testing events holds for any JSON an engine may send, however the bytes arrive."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from router.core.events import DONE, Cut, Splitter, data_of, event_of, examine, is_plain, split
from tests.recordings.library import recordings

IDS = st.lists(st.integers(0, 200_000), max_size=5)
# Texts made to look like the patterns that are cut.
PIECES = st.sampled_from(
    [
        ',"token_ids":[',
        ',"prompt_token_ids":[1]',
        '"usage":{',
        '"error"',
        '"',
        "\\",
        "]",
        "}",
        "\n",
        "\r",
        "[DONE]",
        "é😀",
    ]
)
TEXT = (
    st.lists(PIECES | st.text(max_size=6), max_size=6)
    .map("".join)
    .map(lambda text: text.encode("utf-8", "ignore").decode())
)
LEAF = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT | st.lists(st.integers(0, 9), max_size=4)
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)


@st.composite
def chunks(draw: st.DrawFn) -> dict[str, Any]:
    """A chunk of arbitrary content whose ids, where present, are not the first member of their object, as vLLM's."""
    choice: dict[str, Any] = {"index": 0, "delta": draw(st.dictionaries(TEXT, VALUE, max_size=3))}
    choice["finish_reason"] = draw(st.sampled_from([None, None, "stop"]))
    if draw(st.booleans()):
        choice["token_ids"] = draw(IDS)
    if draw(st.booleans()):
        choice["prompt_token_ids"] = draw(IDS)
    chunk: dict[str, Any] = {"id": draw(TEXT), "choices": [choice] * draw(st.integers(0, 2))}
    if draw(st.booleans()):
        chunk["prompt_token_ids"] = draw(IDS)
    if draw(st.booleans()):
        chunk["usage"] = draw(st.none() | st.just({"prompt_tokens": 1}))
    return chunk


def without_ids(chunk: dict[str, Any]) -> dict[str, Any]:
    """The same, done the long way."""
    ours = ("token_ids", "prompt_token_ids")
    choices = [{k: None if k in ours else v for k, v in choice.items()} for choice in chunk["choices"]]
    return {k: None if k in ours else v for k, v in chunk.items()} | {"choices": choices}


def decoded(block: bytes) -> list[Any]:
    return [msgspec.json.decode(data) for event in split(block) if (data := data_of(event)) not in (None, b"[DONE]")]


@given(chunks())
def test_cutting_bytes_equals_removing_the_members_from_the_parsed_event(chunk):
    event = event_of(chunk)
    cut = Cut(ids=True, usage=False)
    assert [without_ids(chunk)] == decoded(cut.any(event))


@given(st.lists(chunks(), max_size=5))
def test_cutting_a_block_equals_cutting_its_events_and_drops_only_usage_events(several):
    block = b"".join(map(event_of, several)) + DONE
    kept = [without_ids(c) for c in several if c["choices"] or c.get("usage") is None]
    cut = Cut(ids=True, usage=True).any(block)
    assert kept == decoded(cut)
    assert cut.endswith(DONE)


@given(chunks())
def test_a_plain_event_holds_nothing_to_act_on(chunk):
    event = event_of(chunk)
    seen = examine(event)
    assert seen.trouble is None
    acts = bool(seen.finished or seen.usage or seen.done)
    whole = len(chunk["choices"]) == 1 and "prompt_token_ids" not in chunk | chunk["choices"][0]
    assert is_plain(event) == (whole and not acts)


@given(st.binary(max_size=60), st.integers(0, 300))
def test_a_damaged_event_is_never_plain_without_being_readable(junk, at):
    event = event_of({"id": "x", "choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": None}]})
    damaged = event[:at] + junk + event[at:]
    if is_plain(damaged):
        assert (1, None) == (examine(damaged).events, examine(damaged).trouble)


ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(chunks(), max_size=4), ENDS, st.booleans(), st.data())
def test_events_come_out_whole_and_in_order_however_the_bytes_were_cut(several, end, mark, data):
    stream = (b": hello\n\n" + b"".join(map(event_of, several)) + DONE).replace(b"\n", end)
    arriving = (b"\xef\xbb\xbf" if mark else b"") + stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(arriving)), max_size=12)))
    splitter = Splitter()
    blocks = [splitter.feed(arriving[a:b]) for a, b in zip([0, *cuts], [*cuts, len(arriving)], strict=True)]
    assert stream == b"".join(blocks)
    assert [event for block in blocks for event in split(block) if event.strip()] == [
        event for event in split(stream) if event.strip()
    ]
    assert several == [value for block in blocks for value in decoded(block)]


QUICK = [event for one in recordings() if one.answer.streamed for event in one.answer.events()]


@given(event=st.sampled_from(QUICK), ids=st.booleans())
def test_what_passes_quickly_is_an_event_that_a_decoder_calls_plain_and_is_cut_alike(event: bytes, ids: bool) -> None:
    cut = Cut(ids=ids, usage=True)
    quick = cut.quick(event)
    if quick is not None:
        assert is_plain(event)
        assert cut.any(event) == quick


def test_nearly_every_event_of_a_recorded_stream_passes_quickly() -> None:
    greedy = [e for one in recordings() if one.name in ("chat-long-ids", "text-long-ids") for e in one.answer.events()]
    quick = [e for e in greedy if Cut(ids=True, usage=True).quick(e) is not None]
    assert len(greedy) - len(quick) <= 12


@given(text=st.text(), several=st.integers(2, 3))
def test_several_events_at_once_never_pass_quickly(text: str, several: int) -> None:
    event = event_of({"id": "x", "choices": [{"index": 0, "text": text, "finish_reason": None}]})
    assert Cut(ids=True, usage=True).quick(event * several) is None

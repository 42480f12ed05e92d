"""Numbered events, kept within a bound."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.backlog import COMMENT, Ahead, Backlog, Dropped, read_id
from router.core.events import split

EVENT = b"data: x\n\n"
NUMBERED = len(b"id: h/1\n" + EVENT)


def sent(*numbers: int) -> bytes:
    return b"".join(b"id: h/%d\n%b" % (number, EVENT) for number in numbers)


def of(events: int, *, limit_bytes: int = 10_000) -> Backlog:
    backlog = Backlog("h", limit_bytes=limit_bytes)
    for _ in range(events):
        backlog.add(EVENT)
    return backlog


def test_each_event_of_a_block_gets_a_number_of_its_own() -> None:
    backlog = of(1)
    assert (sent(2, 3), 3) == (backlog.add(EVENT * 2), backlog.count)


def test_what_follows_an_event_is_told_word_for_word() -> None:
    assert (sent(1, 2, 3), sent(3), b"") == tuple(of(3).after(number) for number in (0, 2, 3))


def test_a_comment_has_no_number_and_no_blank_line_and_is_not_kept() -> None:
    backlog = of(1)
    assert (COMMENT + sent(2), sent(2)) == (backlog.add(b": ping\n\n" + EVENT), backlog.after(1))


def test_an_event_that_was_never_sent_cannot_be_followed() -> None:
    with pytest.raises(Ahead, match="the last was 3"):
        of(3).after(4)


def test_while_somebody_listens_half_of_the_bound_is_filled() -> None:
    backlog = of(50, limit_bytes=8 * NUMBERED)
    assert 4 * NUMBERED >= backlog.size > 3 * NUMBERED
    with pytest.raises(Dropped, match="only what follows 47"):
        backlog.after(10)


def test_while_nobody_listens_nothing_is_dropped_and_the_bound_says_when_to_wait() -> None:
    backlog = of(1, limit_bytes=3 * NUMBERED)
    backlog.listened = False
    fullness = [(backlog.add(EVENT), backlog.full)[1] for _ in range(3)]
    assert ([False, True, True], sent(1, 2, 3, 4)) == (fullness, backlog.after(0))


def test_what_a_client_has_is_forgotten() -> None:
    backlog = of(5)
    backlog.forget(3)
    assert (sent(4, 5), 2 * NUMBERED) == (backlog.after(3), backlog.size)


def test_a_client_that_came_back_to_a_full_backlog_may_break_off_once_more_before_it_has_read_it() -> None:
    backlog = of(0, limit_bytes=6 * NUMBERED)
    backlog.listened = False
    backlog.add(EVENT * 6)
    backlog.listened = True
    backlog.add(EVENT)
    assert sent(3, 4, 5, 6, 7) == backlog.after(2)


def test_an_event_larger_than_the_bound_is_passed_on_and_not_kept() -> None:
    backlog = of(2, limit_bytes=100)
    large = b"data: %b\n\n" % (b"x" * 200)
    assert (b"id: h/3\n" + large, 0) == (backlog.add(large), backlog.size)


def test_an_id_is_a_handle_and_a_number() -> None:
    assert ("1a2b.3c4d", 41) == read_id(b"1a2b.3c4d/41")


@pytest.mark.parametrize("value", [b"41", b"/41", b"h/", b"h/x", b"h/-1", b"\xff/1", b"h" * 200 + b"/1"])
def test_what_is_no_id_of_ours_is_refused_with_a_sentence(value: bytes) -> None:
    with pytest.raises(ValueError, match="HANDLE/NUMBER"):
        read_id(value)


lines = st.sampled_from(
    [EVENT, b"data: a\ndata: b\n\n", b"data: c\r\n\r\n", b"data: [DONE]\n\n", b"event: e\ndata: d\n\n"]
)


@given(blocks=st.lists(st.lists(lines, min_size=1, max_size=4).map(b"".join)), data=st.data())
def test_however_events_are_bundled_what_was_read_and_what_follows_it_are_the_stream(blocks, data) -> None:  # type: ignore[no-untyped-def]
    whole, one = Backlog("h", limit_bytes=1 << 20), Backlog("h", limit_bytes=1 << 20)
    live = [whole.add(block) for block in blocks]
    each = [one.add(event) for block in blocks for event in split(block)]
    cut = data.draw(st.integers(0, len(each)))
    assert b"".join(each) == b"".join(live) == b"".join(each[:cut]) + whole.after(cut)
    assert b"".join(blocks) == re.sub(rb"(?m)^id: h/\d+\n", b"", b"".join(live))

"""However events are bundled and wherever connections break, what a client has read in the end is the stream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.call import Call
from router.core.backlog import read_id
from router.core.errors import Code, Refused
from router.core.events import split
from router.downstream.stream import Headers
from router.kept.stream import KeptStream
from tests.recordings.library import recordings

STREAMS = [r.answer.body for r in recordings() if r.ending == "complete" and r.answer.streamed and len(r.answer.body)]
PLENTY = 1 << 22


class Connection:
    """One connection of a client, whose bytes may be lost on the way."""

    def __init__(self) -> None:
        self.gone = self.started = self.ended = False
        self.on_pause: Callable[[], None] = lambda: None
        self.on_resume: Callable[[], None] = lambda: None
        self.on_lost: Callable[[], None] | None = None
        self.sent = b""

    async def serve(self, handler: object) -> None: ...

    async def read_body(self, limit_bytes: int) -> bytes:
        return b""

    def start(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        self.started = True

    def write(self, data: bytes) -> None:
        assert data, "an empty chunk would end the answer"
        self.sent += data

    def end(self, data: bytes = b"") -> None:
        self.sent += data
        self.ended = True

    def cut(self, data: bytes) -> None:
        self.end(data)

    def breaks(self, arrived: int) -> bytes:
        """What was dispatched of the bytes that arrived."""
        if self.on_lost is not None:
            self.on_lost()
        seen = self.sent[:arrived]
        return seen[: seen.rfind(b"\n\n") + 2] if b"\n\n" in seen else b""


def kept_stream(connection: Connection, *, limit_bytes: int = PLENTY) -> KeptStream:
    call = Call(
        request_id="r", endpoint="chat", path="/", headers={}, arrived=0.0, arrived_unix_ns=0, trace_id=1, span_id=1
    )
    kept = KeptStream(call, connection, handle="p.h", window_s=10.0, limit_bytes=limit_bytes)
    kept.start(200, [])
    return kept


def last_number(seen: bytes) -> int:
    ids = re.findall(rb"(?m)^id: (.*)$", seen)
    return read_id(ids[-1])[1] if ids else 0


def data_of(seen: bytes) -> bytes:
    return re.sub(rb"(?m)^(id: .*|:.*)\n", b"", seen)


async def _read_with_breaks(stream: bytes, bundles: list[int], breaks: list[tuple[int, float]]) -> bytes:
    """`breaks` are pairs: after how many more bundles, and which share of what was sent had arrived."""
    events = split(stream)
    blocks = []
    for size in [*bundles, len(events)]:
        blocks.append(b"".join(events[:size]))
        events = events[size:]
    blocks = [block for block in blocks if block]
    connection = Connection()
    kept = kept_stream(connection)
    seen = b""
    for after, share in breaks:
        for block in blocks[:after]:
            kept.write(block)
        del blocks[:after]
        seen += connection.breaks(int(len(connection.sent) * share))
        away = blocks[: after // 2]  # what comes while nobody listens
        for block in away:
            kept.write(block)
        del blocks[: len(away)]
        connection = Connection()
        kept.attach(connection, last_number(seen))
    for block in blocks:
        kept.write(block)
    kept.end()
    assert connection.ended
    return data_of(seen + connection.sent)


@settings(max_examples=200, deadline=None)
@given(
    stream=st.sampled_from(STREAMS),
    bundles=st.lists(st.integers(1, 5), max_size=60),
    breaks=st.lists(st.tuples(st.integers(0, 12), st.floats(0, 1)), max_size=6),
)
def test_what_was_read_over_all_connections_is_the_stream(
    stream: bytes, bundles: list[int], breaks: list[tuple[int, float]]
) -> None:
    with asyncio.Runner() as runner:
        assert stream == runner.run(_read_with_breaks(stream, bundles, breaks))


@settings(max_examples=100, deadline=None)
@given(
    stream=st.sampled_from(STREAMS), limit_bytes=st.integers(300, 20_000), at=st.floats(0, 1), has=st.integers(0, 200)
)
def test_within_any_bound_a_client_gets_all_that_follows_or_is_told_that_it_is_gone(
    stream: bytes, limit_bytes: int, at: float, has: int
) -> None:
    async def run() -> None:
        connection = Connection()
        kept = kept_stream(connection, limit_bytes=limit_bytes)
        events = split(stream)
        first = int(at * len(events))
        for event in events[:first]:
            kept.write(event)
        assert kept.backlog.size <= limit_bytes
        connection.breaks(0)
        back = Connection()
        try:
            kept.attach(back, min(has, first))
        except Refused as refused:
            assert (Code.STREAM_GONE, False) == (refused.code, back.started)  # noqa: PT017 - either may come
            return
        for event in events[first:]:
            kept.write(event)
        assert b"".join(events[min(has, first) :]) == data_of(back.sent)

    with asyncio.Runner() as runner:
        runner.run(run())


async def test_who_begins_to_feed_a_full_stream_is_told_to_wait_until_its_client_is_back() -> None:
    connection = Connection()
    kept = kept_stream(connection, limit_bytes=300)
    connection.breaks(0)
    kept.write(b"data: %b\n\n" % (b"x" * 400))
    assert kept.paused
    told: list[str] = []
    kept.on_pause, kept.on_resume = (lambda: told.append("pause")), (lambda: told.append("resume"))
    kept.attach(Connection(), 0)
    assert (["resume"], False) == (told, kept.paused)


@pytest.mark.parametrize("slow_at_the_break", [True, False])
async def test_a_slow_client_stops_the_engine_and_its_leaving_lets_it_go_on(slow_at_the_break: bool) -> None:
    connection = Connection()
    kept = kept_stream(connection)
    told: list[str] = []
    kept.on_pause, kept.on_resume = (lambda: told.append("pause")), (lambda: told.append("resume"))
    connection.on_pause()
    if not slow_at_the_break:
        connection.on_resume()
    connection.breaks(0)
    assert ["pause", "resume"] == told

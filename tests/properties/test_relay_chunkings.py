"""However the network cuts an engine's answer into reads, the client gets the engine's events, whole and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from router.call import Attempt
from router.core.asked import read
from router.core.errors import Code
from router.core.events import DONE, split
from router.core.model import Decision, Verdict
from router.downstream.stream import Headers
from router.relay import Limits, Relay
from router.resume import Story
from router.upstream.connection import EngineConnection
from tests.recordings.library import recordings
from wire.records import Replica

LIMITS = Limits(answer_bytes=1 << 24, event_bytes=1 << 20)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


class Transport(asyncio.Transport):
    """A socket that takes everything."""

    def is_closing(self) -> bool:
        return False

    def writelines(self, list_of_data: object) -> None: ...

    def abort(self) -> None: ...


class Course:
    """Of an attempt that nobody watches: it counts what the client had before and after it got its first event."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.had: list[int] = []

    def starts(self, relay: Relay) -> None:
        self.had.append(len(self._client.got))

    def started(self, relay: Relay) -> None:
        self.had.append(len(self._client.got))

    def progressed(self, tokens: int, now: float) -> None: ...

    def limits(self, relay: Relay) -> tuple[float, float]:
        return 1e9, 60.0

    def patience_s(self, relay: Relay, now: float) -> float:
        return 60.0


class Client:
    """Records what a client would have received."""

    def __init__(self, *, short: bool) -> None:
        """`short`: whole chunks may go past the relay, as to a client's own connection."""
        self.gone = False
        self.started = True
        self.paused = False
        self.chunks = self._chunk if short else None
        self.got: list[bytes] = []
        self.on_pause: Callable[[], None] = lambda: None
        self.on_resume: Callable[[], None] = lambda: None

    async def serve(self, handler: object) -> None: ...

    async def read_body(self, limit_bytes: int) -> bytes:
        return b""

    def start(self, status: int, headers: Headers, *, length: int | None = None) -> None: ...

    def write(self, data: bytes) -> None:
        self.got.append(data)

    def end(self, data: bytes = b"") -> None:
        self.got.append(data)

    def _chunk(self, data: bytes) -> None:
        size, _, rest = data.partition(b"\r\n")
        assert (int(size, 16) + 2, b"\r\n") == (len(rest), rest[-2:])
        self.got.append(rest[:-2])


def relayed(body: bytes, path: str, reads: list[bytes], *, short: bool) -> tuple[Code, list[bytes]]:
    """Feed the reads to a connection with a relay on it; return the outcome and the client's writes."""
    with asyncio.Runner() as runner:
        return runner.run(_relayed(body, path, reads, short=short))


async def _relayed(body: bytes, path: str, reads: list[bytes], *, short: bool) -> tuple[Code, list[bytes]]:
    asked = read(path, body)
    story = Story(asked, token_ids=False, seed=None)
    replica = Replica(replica="r", node="n", region="l", model="m", address="h:1")
    attempt = Attempt(replica=replica, decision=Decision(verdict=Verdict.SEND), span_id=1, started=0.0)
    client = Client(short=short)
    course = Course(client)
    relay = Relay(
        attempt,
        client,
        editor=story.first_leg(),
        choices=asked.choices,
        course=course,
        limits=LIMITS,
        loop=asyncio.get_running_loop(),
    )
    connection = EngineConnection("h:1")
    connection.connection_made(Transport())
    relay.attach(connection)
    connection.send(b"", b"", relay)
    for data in reads:
        connection.data_received(data)
    if course.had:  # what is learned of the first event does not delay it
        before, after = course.had
        assert 0 == before
        assert after or relay.choices_left <= 0  # with its last event an answer waits for its end
    if not relay.done.done():
        connection.connection_lost(None)
    if attempt.code is Code.OK:
        client.end(story.close(relay.tail))
    return attempt.code, client.got


def in_chunks(body: bytes, sizes: list[int]) -> bytes:
    """The body in chunked transfer coding, with chunks of the given sizes."""
    out, at = [], 0
    for size in sizes:
        part = body[at : at + size]
        if part:
            out.append(b"%x\r\n%b\r\n" % (len(part), part))
        at += size
    if body[at:]:
        out.append(b"%x\r\n%b\r\n" % (len(body[at:]), body[at:]))
    return b"".join(out) + b"0\r\n\r\n"


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The same bytes as reads of the given sizes."""
    reads, at = [], 0
    for size in sizes:
        if at < len(data):
            reads.append(data[at : at + size])
        at += size
    return [*reads, data[at:]] if at < len(data) else reads


# What a client may see of these is exactly what the engine sent: they ask for usage and for nothing else of ours.
COMPLETE = [
    r
    for r in recordings()
    if r.ending == "complete"
    and r.answer.streamed
    and r.answer.body.endswith(DONE)
    and b'"error"' not in r.answer.body
    and b'"finish_reason":"abort"' not in r.answer.body
    and r.request.get("stream_options", {}).get("include_usage")
]
sizes = st.lists(st.integers(1, 700), max_size=60)


def test_there_are_recordings_of_a_real_engine_to_try_this_on() -> None:
    assert len(COMPLETE) >= 5


@settings(max_examples=150, deadline=None)
@given(recording=st.sampled_from(COMPLETE), chunks=sizes, reads=sizes, short=st.booleans())
def test_the_client_gets_the_engines_bytes_whatever_the_chunks_and_reads(recording, chunks, reads, short) -> None:  # type: ignore[no-untyped-def]
    wire = HEAD + in_chunks(recording.answer.body, chunks)
    code, got = relayed(recording.body.encode(), recording.endpoint, cut(wire, reads), short=short)
    assert (Code.OK, recording.answer.body) == (code, b"".join(got))


@settings(max_examples=150, deadline=None)
@given(recording=st.sampled_from(COMPLETE), chunks=sizes, reads=sizes, short=st.booleans())
def test_every_write_to_the_client_is_a_whole_number_of_events(recording, chunks, reads, short) -> None:  # type: ignore[no-untyped-def]
    wire = HEAD + in_chunks(recording.answer.body, chunks)
    _, got = relayed(recording.body.encode(), recording.endpoint, cut(wire, reads), short=short)
    assert [] == [part for part in got if part and not part.endswith(b"\n\n")]


@given(recording=st.sampled_from(COMPLETE), short=st.booleans())
def test_events_that_come_one_by_one_go_out_one_by_one(recording, short) -> None:  # type: ignore[no-untyped-def]
    body = recording.answer.body
    events = split(body)
    reads = [HEAD, *(in_chunks(event, [])[:-5] for event in events), b"0\r\n\r\n"]
    code, got = relayed(recording.body.encode(), recording.endpoint, reads, short=short)
    assert (Code.OK, body) == (code, b"".join(got))
    assert len(events) - len(split(got[-1])) == len(got) - 1


@settings(max_examples=150, deadline=None)
@given(recording=st.sampled_from(COMPLETE), reads=sizes, share=st.floats(0, 0.999), short=st.booleans())
def test_an_answer_cut_short_anywhere_is_never_taken_for_complete_and_never_invented(
    recording, reads, share, short
) -> None:  # type: ignore[no-untyped-def]
    wire = HEAD + in_chunks(recording.answer.body, [])
    kept = wire[: int(len(wire) * share)]
    code, got = relayed(recording.body.encode(), recording.endpoint, cut(kept, reads), short=short)
    assert recording.answer.body.startswith(b"".join(got)) or code is Code.OK
    finished = kept.count(b'"finish_reason":"') >= read(recording.endpoint, recording.body.encode()).choices
    assert finished or code is not Code.OK

"""Moves one engine's answer to the client: bytes in, whole events out, nothing awaited and nothing parsed per token.

A `Relay` is the receiver of one attempt. What it cannot pass on (errors, the end, a broken connection) it turns into
the attempt's outcome and wakes the walk, which decides what comes next.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from router.call import Attempt
from router.core import events, stall
from router.core.errors import Code
from router.core.events import EventTooLarge, Splitter
from router.core.glimpse import Seen, Trouble
from router.core.run import Take, nothing_usual
from router.core.seam import Diverged
from router.downstream.stream import Outlet, _ignore
from router.upstream.connection import EngineConnection, Headers
from router.whole import judge, seconds

_TROUBLE = {
    Trouble.ERROR: Code.ENGINE_ERROR,
    Trouble.ABORT: Code.ENGINE_ABORTED,
    Trouble.MALFORMED: Code.ENGINE_MALFORMED,
}


_UNUSED = Splitter(0)
"""Of answers that are no streams."""


class Editor(Protocol):
    """What the client gets of the engine's events: a cut on the first leg, a splice on a resumed one (resume.py)."""

    @property
    def take(self) -> Take:
        """Of one usual event behind another, never empty; None for all else, and for a part of an event."""
        ...

    @property
    def taken(self) -> int:
        """How many events `take` has taken."""
        ...

    def quick(self, block: bytes) -> bytes | None:
        """Of one ordinary event, b"" when it is nothing to the client; None for what needs a closer look."""
        ...

    def any(self, block: bytes) -> bytes:
        """Of any events without trouble. Raises Diverged when they contradict what the client has."""
        ...

    def pack(self) -> None:
        """Hold what it keeps of events in less memory. Asked at each sweep that finds new ones."""
        ...


class Course(Protocol):
    """Who runs the attempt, as the relay sees it."""

    def starts(self, relay: Relay) -> None:
        """The first event has come and goes to the client next."""
        ...

    def started(self, relay: Relay) -> None:
        """It went to the client: what else is to be done can be done now."""
        ...

    def progressed(self, tokens: int, now: float) -> None:
        """Since the last sweep."""
        ...

    def limits(self, relay: Relay) -> tuple[float, float]:
        """When the whole answer must be there, and how long a silence is never too long. Asked at the first sweep."""
        ...

    def patience_s(self, relay: Relay, now: float) -> float:
        """How long this attempt may be silent; asked at each sweep that finds it silent for longer than is usual:
        reports tell more as time goes on."""
        ...


class Limits(NamedTuple):
    """What any answer may have."""

    answer_bytes: int
    event_bytes: int


class Relay:
    """Receiver of a streamed answer."""

    __slots__ = (
        "_client",
        "_clock",
        "_connection",
        "_course",
        "_editor",
        "_last",
        "_limits",
        "_looked_at",
        "_splitter",
        "_take",
        "_total_until",
        "_usual_s",
        "_whole",
        "_whole_bytes",
        "answer",
        "attempt",
        "choices_left",
        "done",
        "quiet_since",
        "retry_after_s",
        "swept_events",
        "tail",
        "usage",
    )

    def __init__(
        self,
        attempt: Attempt,
        client: Outlet,
        *,
        editor: Editor,
        choices: int,
        course: Course,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Limits of time are checked by the sweep, so they hold to a quarter second."""
        self.attempt = attempt
        self.done: asyncio.Future[None] = loop.create_future()
        """Resolved when nothing more will come; the attempt then holds code, status and detail."""
        self.tail = b""
        """The client's last bytes, held back until the request is journalled: from the block in which the last choice
        ended, through the usage, to `[DONE]`."""
        self.answer = b""
        """An answer that is no stream: the engine's error, or JSON where a stream was asked for."""
        self.retry_after_s = 0.0
        self.swept_events = 0
        self.quiet_since = attempt.started
        self.usage = b""
        """The engine's usage object as JSON, when it has come."""
        self.choices_left = choices
        """Choices of the answer that have not ended yet."""
        self._clock = loop.time
        self._client = client
        self._connection: EngineConnection | None = None
        self._editor = editor
        self._take = editor.take
        self._looked_at = 0
        """Events that were not taken as usual ones."""
        self._course = course
        self._limits = limits
        self._total_until = self._usual_s = 0.0
        self._splitter = _UNUSED
        self._last = b""
        """What will be the tail, as the engine sent it."""
        self._whole: list[bytes] | None = None
        self._whole_bytes = 0

    @property
    def events(self) -> int:
        """Data events that came."""
        return self._looked_at + self._editor.taken

    def attach(self, connection: EngineConnection) -> None:
        """Reading from the engine follows the client's pace once a stream has begun."""
        self._connection = connection

    def lead(self) -> None:
        """The client's pace is this engine's, and no rival's."""
        if self._connection is not None:
            self._client.on_pause = self._connection.pause
            self._client.on_resume = self._connection.resume
            if self._client.paused:
                self._connection.pause()

    def detach(self) -> None:
        """The connection goes to others: a client that gets slow must not stop theirs."""
        self._lengthen()
        if self._connection is not None and self._client.on_pause == self._connection.pause:
            self._client.on_pause = self._client.on_resume = _ignore

    def again(self) -> None:
        """The same request goes out once more, on a fresh connection: nothing of the first try was answered."""
        self.done = asyncio.get_running_loop().create_future()
        self.attempt.code, self.attempt.detail = Code.OK, ""

    # Receiver

    def head(self, status: int, headers: Headers) -> None:
        self.attempt.status = status
        names = dict(headers)
        self.retry_after_s = seconds(names.get(b"retry-after", b""))
        if status != 200 or not names.get(b"content-type", b"").startswith(b"text/event-stream"):
            self._whole = []
        else:
            self._splitter = Splitter(self._limits.event_bytes)
            self.lead()

    def body(self, data: bytes) -> None:
        if not self._splitter.held and (out := self._take(data)) is not None:
            self._client.write(out)
            if self._client.chunks is not None and self._connection is not None:
                self._connection.shorten(self._take, self._client)
        elif self._whole is not None:
            self._collect(data)
        elif not self.done.done():
            self._split(data)

    def end(self) -> None:
        if self._whole is not None:
            self.answer = b"".join(self._whole)
            code, detail = judge(self.attempt.status, self.answer)
            self.stop(code, detail)
        else:
            self._judge_end("the engine ended the stream before it was complete")

    def lost(self, error: Exception | None) -> None:
        self._judge_end(f"the connection to the engine broke: {error or 'closed by the engine'}")

    def stop(self, code: Code, detail: str = "") -> None:
        """Settle the outcome, once. What comes after is ignored."""
        gone = self.done.cancelled()  # with the task that waited for it: nobody has settled anything
        if self.done.done() and not gone:
            return
        self.attempt.code, self.attempt.detail = code, detail
        self.attempt.ended = self._clock()
        self._take = nothing_usual
        self._lengthen()
        if not gone:
            self.done.set_result(None)

    def sweep(self, now: float) -> None:
        """Stop an attempt that has been silent for too long. A client that does not read is not the engine's fault."""
        if self.events != self.swept_events:
            self._course.progressed(self.events - self.swept_events, now)
            self.swept_events, self.quiet_since = self.events, now
            self._editor.pack()
        elif self._connection is not None and self._connection.paused:
            self.quiet_since = now
        if not self._total_until:
            self._total_until, self._usual_s = self._course.limits(self)
        quiet_s = now - self.quiet_since
        if now > self._total_until:
            self.stop(Code.TOTAL_TIMEOUT, "the request took longer than its total limit")
        elif quiet_s > self._usual_s and quiet_s > self._course.patience_s(self, now):
            if self.attempt.first_token:
                self.stop(Code.STALLED, f"no event for {quiet_s:.1f} s")
            else:
                self.stop(Code.FIRST_TOKEN_TIMEOUT, f"no first event within {quiet_s:.1f} s")

    def excuse(self, pause_s: float) -> None:
        """The router itself stood still: what the engine sent meanwhile is still to be read."""
        self.quiet_since += pause_s

    @property
    def interval_s(self) -> float:
        """Mean time between events so far."""
        return stall.interval_s(self.events, self.quiet_since - self.attempt.first_token)

    # How

    def _lengthen(self) -> None:
        if self._connection is not None:
            self._connection.lengthen()

    def _split(self, data: bytes) -> None:
        """What is no usual event, or not one alone. The way is short again behind the next that is."""
        begun = self.attempt.first_token
        self._lengthen()
        try:
            block = self._splitter.feed(data)
            if block.find(b"\n\n") + 2 == len(block):
                self._pass(block)
            elif block:
                self._pass_each(events.split(block))
        except EventTooLarge as error:
            self.stop(Code.ENGINE_MALFORMED, str(error))
        except Diverged as error:
            self.stop(Code.DIVERGED, str(error))
        if not begun and self.attempt.first_token:
            self._course.started(self)
            if self._connection is not None:
                self._connection.streams()

    def _pass(self, block: bytes) -> None:
        """One event that did not look usual at once. Raises Diverged."""
        out = self._editor.quick(block)
        if out is None:
            self._act(block)
            return
        if not self.events:
            self._begin()
        self._looked_at += 1
        if out:
            self._client.write(out)

    def _pass_each(self, found: list[bytes]) -> None:
        """Several events that came in one read: usual ones in a row go out in one write. Raises Diverged."""
        usual: list[bytes] = []
        for event in found:
            if (out := self._take(event)) is not None:
                usual.append(out)
                continue
            if usual:
                self._client.write(b"".join(usual))
                usual = []
            self._pass(event)
            if self.done.done():
                return
        if usual:
            self._client.write(b"".join(usual))

    def _act(self, block: bytes) -> None:
        """A block that is not one ordinary event: the end, usage, a comment, several choices, or trouble."""
        seen: Seen = events.examine(block)
        if seen.events and not self.events:
            self._begin()
        self._looked_at += seen.events
        self.choices_left -= seen.finished
        self.usage = seen.usage or self.usage
        good, too_early = seen.good, seen.done and self.choices_left > 0
        if too_early:  # whatever comes of it, the client must not read that this was all
            good = b"".join(events.split(good)[:-1])
        if good and (self.choices_left <= 0 or self._last):
            self._last += good
        elif good and (out := self._editor.any(good)) and self.events:
            self._client.write(out)
        if too_early:
            self.stop(Code.ENGINE_BROKE, "the engine said it was done before the answer was complete")
        if seen.trouble is not None:
            self.stop(_TROUBLE[seen.trouble], seen.detail)

    def _judge_end(self, otherwise: str) -> None:
        """An answer is complete when every choice has ended. `[DONE]` alone proves nothing: a dying engine sends it
        too; and an engine that ended all choices and lost only its `[DONE]` has left nothing to continue."""
        if self._whole is not None or self.choices_left > 0:
            self.stop(Code.ENGINE_BROKE, otherwise)
            return
        try:
            self.tail = self._editor.any(self._last) if self._last else b""
            self.stop(Code.OK)
        except Diverged as error:
            self.stop(Code.DIVERGED, str(error))

    def _begin(self) -> None:
        self.attempt.first_token = self._clock()
        self._course.starts(self)

    def _collect(self, data: bytes) -> None:
        assert self._whole is not None
        self._whole.append(data)
        self._whole_bytes += len(data)
        if self._whole_bytes > self._limits.answer_bytes:
            self.stop(Code.ENGINE_MALFORMED, f"the answer is larger than {self._limits.answer_bytes:,} bytes")

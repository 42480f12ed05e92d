"""A stream that outlives its client's connection: the walk writes here, and who listens may change.

The walk goes on in the task it began in. While nobody listens its events are kept, up to the bound; then the engine
waits, as it does for a slow client. A client that comes back gets what it missed and then what comes. The walk's end
waits for it too, so that a record says whether the answer was delivered. When the window closes first, the walk is
cancelled as that of any client that left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.answer import broken_answer
from router.call import Call, Return
from router.core.backlog import COMMENT, Ahead, Backlog, Dropped
from router.core.errors import Code, Refused
from router.core.usage import Usage
from router.course import stream_headers
from router.downstream.stream import ClientStream, Headers, _ignore

RESUME_HEADER = b"x-switchyard-resume"
TAKEN_OVER = broken_answer(Code.SUPERSEDED, "its client came back on another connection").data


class KeptStream:
    """The outlet of one walk. Made in the walk's task, with the connection that the request came on."""

    chunks = None
    """Each event gets its number first."""

    def __init__(self, call: Call, client: ClientStream, *, handle: str, window_s: float, limit_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        self.gone = False
        """The window has closed: nobody will get any more of it."""
        self.started = False
        self.handle = handle
        self.call = call
        self.backlog = Backlog(handle, limit_bytes=limit_bytes)
        self.streams = False
        """The answer is one that can be kept: events, not a body of known length."""
        self.closes = 0.0
        """When the window closes, 0 while it is not open: somebody listens and more is to come."""
        self.over = False
        """The last bytes are here."""
        self.delivered: Usage | None = None
        """While nobody listens: what had been sent when the last one left."""
        self._window_s = window_s
        self._clock = loop.time
        self._task = asyncio.current_task()
        self._left_at = 0.0
        self._listener: ClientStream | None = None
        self._heard = asyncio.Event()
        """Somebody listens."""
        self._done = asyncio.Event()
        """Of the present listener: nothing more will come on its connection."""
        self.paused = self._slow = False
        self.on_pause: Callable[[], None] = _ignore
        self.on_resume: Callable[[], None] = _ignore
        self._listen(client)

    # Outlet

    def start(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        self.started, self.streams = True, length is None
        assert self._listener is not None, "without one, before the first byte, the walk is cancelled"
        if self.streams:
            headers = [*headers, (RESUME_HEADER, self.handle.encode())]
        self._listener.start(status, headers, length=length)

    def write(self, data: bytes) -> None:
        out = self.backlog.add(data)
        if self._listener is not None:
            self._listener.write(out)
        elif not self.paused:
            self._pace()

    def end(self, data: bytes = b"") -> None:
        self.over = True
        self.closes = self._clock() + self._window_s
        self.on_pause = self.on_resume = _ignore
        out = self.backlog.add(data) if data and self.streams else data
        if self._listener is not None:
            self._listener.end(out)
            self._dismiss()

    # Who listens

    async def heard(self) -> None:
        """Wait until somebody listens, to whom the end can be said."""
        while self._listener is None:
            await self._heard.wait()

    def attach(self, client: ClientStream, number: int) -> asyncio.Event:
        """Let a client that came back listen from this event on. Return what says that nothing more will come on its
        connection. Raises Refused when what it lacks is not here."""
        missed = self._after(number)
        now = self._clock()
        absent_s = now - self._left_at if self._listener is None and not self.over else 0.0
        self.call.returns.append(Return(at=now, absent_s=absent_s, event=number))
        self.backlog.forget(number)
        if self._listener is not None:
            self._listener.cut(TAKEN_OVER)
            self._dismiss()
        client.start(200, [*stream_headers(self.call), (RESUME_HEADER, self.handle.encode())])
        if self.over:
            client.end(missed)
            return self._done
        self._listen(client)
        client.write(missed or COMMENT)
        self._pace()
        return self._done

    def close(self) -> None:
        """Nobody came back in time, or the router leaves: end the walk, if it has not ended."""
        self.gone = True
        if not self.over and self._task is not None:
            self._task.cancel("nobody came back")

    def overdue(self, now: float) -> bool:
        return 0.0 < self.closes < now

    def excuse(self, pause_s: float) -> None:
        """The router itself stood still: nobody could come back meanwhile."""
        if self.closes:
            self.closes += pause_s

    @property
    def unheard(self) -> bool:
        """The walk goes on for nobody."""
        return self._listener is None and not self.over

    def _after(self, number: int) -> bytes:
        try:
            return self.backlog.after(number)
        except Ahead as error:
            raise Refused(Code.INVALID_REQUEST, f"Last-Event-ID: {error}.", param="last-event-id") from error
        except Dropped as error:
            raise Refused(Code.STREAM_GONE, f"{str(error).capitalize()}; {AGAIN}") from error

    def _listen(self, client: ClientStream) -> None:
        self._listener, self._slow = client, False
        self.closes, self.delivered, self.backlog.listened = 0.0, None, True
        client.on_lost = self._lost
        client.on_pause, client.on_resume = self._listener_is_slow, self._listener_is_quick
        self._done = asyncio.Event()
        self._heard.set()

    def _dismiss(self) -> None:
        assert self._listener is not None
        self._listener.on_pause = self._listener.on_resume = _ignore
        self._listener.on_lost = None
        self._listener, self._slow, self.backlog.listened = None, False, False
        self._heard.clear()
        self._done.set()

    def _lost(self) -> None:
        """The listener's connection broke. Before the first byte its client cannot name what it would come back to."""
        self._dismiss()
        if not self.streams:
            self.close()
            return
        self._left_at = self._clock()
        self.closes = self._left_at + self._window_s
        story, attempts = self.call.story, self.call.attempts
        if story is not None:
            self.delivered = story.charged(prompt_estimate=attempts[-1].decision.prompt_tokens)
        self._pace()

    def _listener_is_slow(self) -> None:
        self._slow = True
        self._pace()

    def _listener_is_quick(self) -> None:
        self._slow = False
        self._pace()

    def _pace(self) -> None:
        """Have the engine wait for a slow listener, and for nobody once the bound is reached."""
        wait = self._slow if self._listener is not None else self.backlog.full
        if wait != self.paused:
            self.paused = wait
            (self.on_pause if wait else self.on_resume)()


AGAIN = "send the request again without Last-Event-ID to have a new answer."

"""One generating request from its first token to its end: what the client gets, event by event or whole.

A call has one or more choices, each a sequence in the batch and an answer of the toy model. The replica tells it when
a choice has a token; it writes, holds back while the client is slow (and then sends what has gathered as one event, as
vLLM does), meets its fault, and says when it is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from node_agent.engines.simulated import wire
from node_agent.engines.simulated.answer import Answer, Delta
from node_agent.engines.simulated.batching import Sequence
from node_agent.engines.simulated.faults import Fault, Kind
from node_agent.engines.simulated.http import Connection
from node_agent.engines.simulated.requests import error_body
from node_agent.engines.simulated.script import ToolView

ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class Choice:
    __slots__ = ("answer", "delta", "index", "prompt_ids", "sequence", "tool")

    def __init__(self, index: int, prompt_ids: list[int], answer: Answer, sequence: Sequence, tool: ToolView | None):
        self.index = index
        self.prompt_ids = prompt_ids
        self.answer = answer
        self.sequence = sequence
        self.tool = tool
        self.delta: Delta | None = None
        """What has gathered: of a whole answer, while the client is slow, or until an event is full."""


class Shape(Protocol):
    """The wire format of one endpoint, streamed or whole."""

    streamed: bool

    def opening(self, choice: Choice) -> bytes:
        """Sent once per choice, before its first token."""
        ...

    def event(self, choice: Choice, delta: Delta) -> bytes: ...

    def closing(self) -> bytes:
        """Usage, if it was asked for."""
        ...

    def whole(self, choices: list[Choice]) -> bytes: ...


class Call:
    def __init__(
        self,
        connection: Connection,
        choices: list[Choice],
        shape: Shape,
        usage: wire.Usage,
        *,
        id_: str,
        fault: Fault | None,
        arrived: float,
        over: Callable[[Call, str], None],
        interval: int = 1,
    ) -> None:
        """With an `interval` the tokens behind the first go out so many at a time."""
        self.connection = connection
        self.choices = choices
        self.shape = shape
        self.usage = usage
        self.id = id_
        self.fault = fault
        self.arrived = arrived
        self.open = {c.sequence.id: c for c in choices}
        self.opened = False
        self._over = over
        self._interval = interval
        self._silent = False

    def begin(self) -> None:
        """The request is accepted: vLLM sends the head of a stream before its first token."""
        self.connection.on_gone = self._gone
        if self.shape.streamed:
            self.connection.on_writable = self._flush
            self.connection.begin_stream()

    def token(self, sequence_id: str) -> str | None:
        """One more token for a choice; returns why it ended, if it did."""
        choice = self.open.get(sequence_id)
        if choice is None or self._silent:
            return None
        if self.fault is not None and self.usage.completion >= self.fault.after_tokens and self._strike(choice):
            return None
        delta = choice.answer.take()
        self.usage.completion += 1
        if not self.opened:
            self._open()
        finish = delta.finish
        if choice.delta is not None:
            choice.delta.merge(delta)
            delta, choice.delta = choice.delta, None
        if not self.shape.streamed or self.connection.paused or self._gathers(choice, delta):
            choice.delta = delta
        else:
            self._send(choice, delta)
        if finish is not None:
            del self.open[sequence_id]
            if not self.open:
                self._finish()
        return finish

    def _gathers(self, choice: Choice, delta: Delta) -> bool:
        return len(delta.ids) < self._interval and choice.answer.count > 1 and delta.finish is None

    def end(self, reason: str) -> None:
        """Give all open choices this finish reason, now."""
        if not self.opened:
            self._open()
        for choice in list(self.open.values()):
            delta = choice.delta or Delta([], "")
            delta.finish = reason
            if self.shape.streamed:
                choice.delta = None
                self._send(choice, delta)
            else:
                choice.delta = delta
        self.open.clear()
        self._finish(reason)

    def fail(self, message: str = ENGINE_DEAD) -> None:
        """What vLLM does when its core has died: an error, [DONE], and a clean end."""
        body = error_body(message, "InternalServerError", 500)
        self.open.clear()
        self.connection.on_gone = self.connection.on_writable = None
        self._over(self, "error")
        if self.shape.streamed:
            self.connection.send(b"data: " + body + b"\n\n" + wire.DONE)
            self.connection.end_stream()
        else:
            self.connection.respond(500, body)

    def _open(self) -> None:
        self.opened = True
        self.usage.cached = self.choices[0].sequence.cached_tokens
        if self.shape.streamed:
            opening = b"".join(map(self.shape.opening, self.choices))
            if opening:
                self.connection.send(opening)

    def _send(self, choice: Choice, delta: Delta) -> None:
        event = self.shape.event(choice, delta)
        if event:
            self.connection.send(event)

    def _flush(self) -> None:
        """The client reads again."""
        for choice in self.choices:
            delta, choice.delta = choice.delta, None
            if delta is not None:
                self._send(choice, delta)
        if not self.open:
            self._close()

    def _finish(self, reason: str = "") -> None:
        self._over(self, reason)
        if not (self.shape.streamed and self.connection.paused):
            self._close()

    def _close(self) -> None:
        if not self.shape.streamed:
            self.connection.respond(200, self.shape.whole(self.choices))
            return
        closing = self.shape.closing()
        if self.fault is None or self.fault.kind is not Kind.NO_DONE:
            closing += wire.DONE
        if closing:
            self.connection.send(closing)
        self.connection.end_stream()

    def _gone(self) -> None:
        if self.open:
            self.open.clear()
            self._over(self, "gone")

    def _strike(self, choice: Choice) -> bool:
        """The fault's moment has come; True when the token is not to be sent."""
        assert self.fault is not None
        match self.fault.kind:
            case Kind.STALL:
                self._silent = True
                return True
            case Kind.CUT:
                self.connection.close()
                return True
            case Kind.RESET:
                self.connection.reset()
                return True
            case Kind.ENGINE_DEAD:
                self.fail()
                return True
            case Kind.ABORT:
                self.end("abort")
                return True
            case Kind.CONTENT_FILTER:
                self.end("content_filter")
                return True
            case Kind.MALFORMED:
                self.fault = None
                if self.shape.streamed:
                    self.connection.send(b'data: {"id":"' + self.id.encode() + b'","choices":[{"ind\n\n')
                return False
            case _:
                return False


class ChatShape:
    """/v1/chat/completions"""

    def __init__(
        self, head: wire.Head, usage: wire.Usage, *, streamed: bool, prompt_text: str | None, echo: str
    ) -> None:
        self.streamed = streamed
        self.head = head
        self.usage = usage
        self.prompt_text = prompt_text
        self.echo = echo
        self._events = wire.ChatEvents(head, usage)

    def opening(self, choice: Choice) -> bytes:
        first = self._events.first(choice.index, choice.prompt_ids, self.prompt_text)
        return first + self._events.echo(choice.index, self.echo) if self.echo else first

    def event(self, choice: Choice, delta: Delta) -> bytes:
        if choice.tool is None:
            return self._events.event(choice.index, delta)
        if delta.finish == "stop":
            delta.finish = choice.tool.finish
        return self._events.tool_event(choice.index, delta, choice.tool)

    def closing(self) -> bytes:
        return self._events.final_usage() if self.head.usage else b""

    def whole(self, choices: list[Choice]) -> bytes:
        made: list[dict[str, Any]] = []
        for c in choices:
            delta = c.delta or Delta([], "", "stop")
            if c.tool is not None and delta.finish == "stop":
                delta.finish = c.tool.finish
            made.append(wire.chat_choice(self.head, c.index, delta, c.tool, self.echo))
        return wire.chat_body(self.head, self.usage, made, choices[0].prompt_ids, self.prompt_text)


class CompletionShape:
    """/v1/completions"""

    def __init__(self, head: wire.Head, usage: wire.Usage, *, streamed: bool, echo: dict[int, str]) -> None:
        self.streamed = streamed
        self.head = head
        self.usage = usage
        self.echo = echo
        """Prompt text by index of the choice, where it is to be repeated."""
        self._events = wire.CompletionEvents(head, usage)
        self._begun: set[int] = set()

    def opening(self, choice: Choice) -> bytes:
        return b""

    def event(self, choice: Choice, delta: Delta) -> bytes:
        if choice.index in self._begun or not (self.head.ids or self.echo):
            return self._events.event(choice.index, delta)
        self._begun.add(choice.index)
        # Real vLLM gives prompt ids with an echo whether they were asked for or not, and with ids no text of it.
        echo = None if self.head.ids else self.echo.get(choice.index)
        return self._events.event(choice.index, delta, choice.prompt_ids, echo)

    def closing(self) -> bytes:
        return self._events.final_usage() if self.head.usage else b""

    def whole(self, choices: list[Choice]) -> bytes:
        echo = {} if self.head.ids else self.echo
        made = [
            wire.completion_choice(
                self.head, c.index, c.delta or Delta([], "", "stop"), c.prompt_ids, echo.get(c.index, "")
            )
            for c in choices
        ]
        return wire.completion_body(self.head, self.usage, made)

"""What a worker and its parent say to each other, over one socket pair per worker: msgpack behind a length.

The end of the channel is news too: a worker that reads it has lost its parent, a parent has lost a worker.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Literal

import msgspec

from router.core.difference import Difference, Question
from router.workers.tally import Figures

log = logging.getLogger(__name__)

How = Literal["leave", "retire", "now"]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Worker to parent: it accepts connections."""


class Leave(msgspec.Struct, frozen=True, tag=True):
    """Parent to worker. `leave`: in order, all of us go. `retire`: a successor is there. `now`: at once."""

    how: How


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Worker to parent: ask all. Parent to worker: answer. Without a request id and a question it is the figures that
    are wanted."""

    number: int
    request_id: str = ""
    tenant: str = ""
    question: Question | None = None


class Told(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The answer to `Ask`: of one worker to the parent, of all to the worker that asked."""

    number: int
    workers: dict[str, Figures] = {}
    ended: Figures = Figures()
    """What workers that have ended, or did not answer, had counted."""
    silent: int = 0
    """Workers that did not answer."""
    restarts: int = 0
    story: str | None = None
    difference: Difference | None = None


Message = Ready | Leave | Ask | Told
_LENGTH_BYTES = 4


class Channel:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, message: Message) -> None:
        """To a channel that is closed it is said in vain; reading tells of its end."""
        if self._writer.is_closing():
            return
        data = msgspec.msgpack.encode(message)
        self._writer.write(len(data).to_bytes(_LENGTH_BYTES) + data)

    async def receive(self) -> Message | None:
        """None at the end of the channel. What cannot be read is passed over: after an upgrade of the files on disk
        the workers that SIGHUP starts are newer than their parent."""
        while True:
            try:
                length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES))
                data = await self._reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
            try:
                return self._decoder.decode(data)
            except msgspec.MsgspecError as error:
                log.warning("a message between worker and parent is passed over: %s", error)

    def close(self) -> None:
        self._writer.close()

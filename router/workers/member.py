"""A worker's side: it tells its parent when it serves, leaves when told, and answers for all by asking its parent.

When the parent is gone it leaves at once: nobody would start it again, and its port must be free for the next parent.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from router.core.difference import Difference, Question
from router.workers.channel import Ask, Channel, How, Leave, Ready, Told
from router.workers.tally import Figures

log = logging.getLogger(__name__)

ANSWER_LIMIT_S = 2.0
"""The parent waits less for its workers (parent.py), so this runs out only where the parent itself hangs."""


class Post(msgspec.Struct, frozen=True):
    """What a worker is told on its command line."""

    name: str
    listener: int
    channel: int

    @classmethod
    def read(cls, text: str) -> Post:
        name, listener, channel = text.split(",")
        return cls(name, int(listener), int(channel))

    def write(self) -> str:
        return f"{self.name},{self.listener},{self.channel}"


class Member:
    def __init__(self, post: Post) -> None:
        self.post = post
        self._channel: Channel | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Told]] = {}

    async def open(self) -> None:
        self._channel = await Channel.over(socket.socket(fileno=self.post.channel))

    async def run(
        self,
        *,
        leave: Callable[[How], None],
        figures: Callable[[], Figures],
        story: Callable[[str, str], str | None],
        replay: Callable[[Question, str], Awaitable[Difference]],
    ) -> None:
        """Until the parent is gone, or cancelled."""
        assert self._channel is not None, "open it first"
        try:
            while (message := await self._channel.receive()) is not None:
                match message:
                    case Leave():
                        leave(message.how)
                    case Ask():
                        if message.question is not None:
                            difference = await replay(message.question, message.tenant)
                            self._channel.send(Told(number=message.number, difference=difference))
                        else:
                            self._channel.send(self._answer(message, figures, story))
                    case Told():
                        if (future := self._asked.get(message.number)) and not future.done():
                            future.set_result(message)
                    case Ready():
                        raise AssertionError("a parent does not serve")
            log.error("the parent process is gone; leaving at once")
            leave("now")
        finally:
            self._channel.close()

    def ready(self) -> None:
        if self._channel is not None:
            self._channel.send(Ready())

    async def ask_all(self, *, request_id: str = "", tenant: str = "", question: Question | None = None) -> Told | None:
        """All workers' answers, the own included. None when the parent does not answer."""
        if self._channel is None:
            return None
        ask = Ask(next(self._numbers), request_id, tenant, question)
        future: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._asked[ask.number] = future
        try:
            self._channel.send(ask)
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_LIMIT_S):
                    return await future
            return None
        finally:
            del self._asked[ask.number]

    def _answer(self, ask: Ask, figures: Callable[[], Figures], story: Callable[[str, str], str | None]) -> Told:
        if ask.request_id:
            return Told(number=ask.number, story=story(ask.request_id, ask.tenant))
        return Told(number=ask.number, workers={self.post.name: figures()})

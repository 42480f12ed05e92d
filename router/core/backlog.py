"""The events of one stream whose client may come back: numbered, and the last of them kept within a bound.

While somebody listens, half of the bound is filled with what was last written, because nobody knows how much of that
was still under way when a connection breaks. While nobody does, everything is kept, up to the bound: then the backlog
is full, and whoever feeds it has to wait.

Numbers count events with data from 1, as clients do. A comment is no event: of it a comment line is passed on, to
keep proxies awake, and nothing is kept. A comment between blank lines would do harm: once an id was seen, openai's
Python SDK takes the second blank line for an event without data, and fails on it.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from router.core.events import data_of, split

COMMENT = b":\n"
"""Goes on with the next event; alone it brings the head of an answer to a client that has all events so far."""
ID_LIMIT_BYTES = 128


class Dropped(LookupError):  # noqa: N818 - reads as what it is where it is caught
    """What follows this event is not kept any more."""


class Ahead(LookupError):  # noqa: N818 - reads as what it is where it is caught
    """This event has not been sent yet."""


class Backlog:
    """`listened` says whether what is added goes out at once."""

    def __init__(self, handle: str, *, limit_bytes: int) -> None:
        self.count = 0
        """Number of the last event."""
        self.size = 0
        """Bytes kept."""
        self.listened = True
        self._limit = limit_bytes
        self._prefix = f"id: {handle}/".encode()
        self._kept: deque[bytes] = deque()

    def __len__(self) -> int:
        """Events kept."""
        return len(self._kept)

    @property
    def full(self) -> bool:
        return not self.listened and self.size >= self._limit

    def add(self, block: bytes) -> bytes:
        """Number the events of a block of whole ones; return them as the client gets them."""
        if block.startswith(b"data: ") and block.find(b"\n") == len(block) - 2:  # one event of one line: the usual
            return self._number(block)
        return b"".join(COMMENT if data_of(event) is None else self._number(event) for event in split(block))

    def after(self, number: int) -> bytes:
        """What follows an event. Raise Ahead or Dropped."""
        if number > self.count:
            raise Ahead(f"event {number} was not sent yet; the last was {self.count}")
        skipped = number - (self.count - len(self))
        if skipped < 0:
            raise Dropped(f"what follows event {number} is not kept any more, only what follows {number - skipped}")
        return b"".join(islice(self._kept, skipped, None))

    def forget(self, number: int) -> None:
        """The client has everything up to this event, which `after` knew."""
        for _ in range(number - (self.count - len(self))):
            self._drop()

    def _number(self, event: bytes) -> bytes:
        self.count += 1
        out = b"%b%d\n%b" % (self._prefix, self.count, event)
        self._kept.append(out)
        self.size += len(out)
        if self.listened:
            self._make_room()
        return out

    def _make_room(self) -> None:
        """Two old ones leave for a new one, not more: a client that came back was just sent up to the whole bound, and
        may break off again before it has read it."""
        for _ in range(2):
            if self.size > self._limit // 2:
                self._drop()
        while self.size > self._limit:
            self._drop()

    def _drop(self) -> None:
        self.size -= len(self._kept.popleft())


def read_id(value: bytes) -> tuple[str, int]:
    """Handle and number of a `Last-Event-ID`. Raise ValueError with a sentence."""
    handle, _, number = value.rpartition(b"/")
    if len(value) > ID_LIMIT_BYTES or not handle or not number.isdigit() or not handle.isascii():
        raise ValueError("Last-Event-ID is no id of this router's events: those read HANDLE/NUMBER")
    return handle.decode(), int(number)

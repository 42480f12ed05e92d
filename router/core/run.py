"""The usual token event of a stream with one choice: told, cut and kept by its bytes, nothing decoded.

The events of one stream are the same bytes but for their text and their token id. So when one has been read, the next
are compared with it: one search finds text and id, and only these are kept, as they stand in the JSON, until somebody
wants to know (Transcript.take_run). A token then costs its text and its id's digits, with a line feed behind each,
instead of a whole event. An event that came as one chunk of HTTP is given as one, so that nothing else has to look at
it.

Why bytes are proof: the pattern is all of an event but the text and the id, and it ends the text at a quote. A text
that has no bare quote in it and does not end in a backslash can end nowhere else, and digits are a number. What a text
may not hold in JSON (control characters, unknown escapes) is found when it is decoded; a run with such a text is
unreadable as a whole, and is then not continued. tests/properties/test_run.py compares it with the decoding way.
"""

from __future__ import annotations

import re
import sys
from array import array
from functools import cache
from typing import Protocol

import msgspec

from router.core.chunks import TokenId
from router.core.framing import LINES

_USUAL = re.compile(
    rb'(data: \{"id":"[^"\\]*","object":"[^"\\]*","created":\d+,"model":"[^"\\]*","choices":\[\{"index":0,'
    rb'(?:"delta":\{"(\w+)|"(text))":")'
    rb'[^"\\\x00-\x1f]+'
    rb'("\}?,"logprobs":null,"finish_reason":null(?:,"stop_reason":null(?:,"prompt_token_ids":null)?)?)'
    rb'(,"token_ids":\[\d+\]|,"token_ids":null|)\}\]\}\n\n'
)
"""vLLM's event of a chat's or a completion's token: what stands before the text, its channel, what stands behind it,
the ids."""
_IDS = b',"token_ids":['
_CLOSING = b"]}]}\n\n"
_NO_IDS = b',"token_ids":null}]}\n\n'
_CHUNK_CLOSING = _CLOSING + b"\r\n"
_LINE_FEED, _QUOTE, _BACKSLASH = b'\n"\\'
PACKED_BYTES = 400
"""What grows is moved from size to size, and with thousands of streams each size holds memory for itself. So it grows
to no more than this. With what it reserves, or packed, it is then an object of less than 512 bytes: what is larger
leaves Python's own memory for malloc's, and its place behind."""


class Take(Protocol):
    """What becomes of one usual event: `Run.take`, or `nothing_usual`."""

    def __call__(self, data: bytes, skip: int = 0, /) -> bytes | None: ...


class Run:
    """Usual events in a row, in the order they came."""

    __slots__ = (
        "_before",
        "_behind",
        "_cut",
        "_cuts",
        "_drained",
        "_gap",
        "_kept",
        "_named",
        "_packed",
        "_start",
        "channel",
        "taken",
    )

    def __init__(self, *, cut_ids: bool) -> None:
        self.channel = ""
        self.taken = 0
        """Events, from the first on."""
        self._drained = 0
        self._cuts = cut_ids
        self._before = b"?"
        self._start = 0
        self._behind = b""
        self._gap = 0
        self._named = False
        self._cut = b""
        self._kept = bytearray()
        """Of each event its text, and where the engine names ids a line feed, the id's digits and a line feed: in none
        of them is another."""
        self._packed: tuple[bytes, ...] = ()
        """What was kept before that."""

    @property
    def count(self) -> int:
        """Events taken and not drained yet."""
        return self.taken - self._drained

    def learn(self, block: bytes) -> None:
        """Take the next events for usual that are like this one. Asked for an event that `take` did not take; nothing
        must be left to drain."""
        if block.startswith(self._before) or (found := _USUAL.fullmatch(block)) is None:
            return
        before, of_delta, of_choice, behind, ids = found.groups()
        if of_delta == b"role" or behind.startswith(b'"}') != (of_delta is not None):
            return
        self.channel = sys.intern((of_delta or of_choice).decode())
        self._before, self._start = before, len(before)
        self._named = ids.endswith(b"]")
        self._behind, self._cut = _ends(behind, _IDS if self._named else ids + b"}]}\n\n")
        self._gap = len(self._behind)

    def take(self, data: bytes, skip: int = 0) -> bytes | None:
        """The client's bytes of a usual event, which is then kept; None for any other, of which nothing is kept.

        With `skip`, the length of its size line, the event is one chunk of HTTP, of less than LIMIT_BYTES, and so is
        what it gives."""
        start = skip + self._start
        at = data.rfind(self._behind, start)
        if at <= start or not data.startswith(self._before, skip):
            return None
        word = data[start:at]
        if _LINE_FEED in word or ((_BACKSLASH in word or _QUOTE in word) and not _ends_nowhere(word)):
            return None
        rest = data[at + self._gap :]
        if self._named:
            digits = rest.removesuffix(_CHUNK_CLOSING if skip else _CLOSING)
            if not digits.isdigit():
                return None
            kept = self._kept
            kept += word
            kept += b"\n"
            kept += digits
            kept += b"\n"
            if self._cuts:
                whole = data[skip:at] + self._cut
                data = LINES[len(whole) - 2] + whole if skip else whole[:-2]
        elif rest != (b"\r\n" if skip else b""):
            return None
        else:
            self._kept += word
        self.taken += 1
        return data

    def pack(self) -> None:
        """Hold what was kept in less memory. Asked now and then, as it costs more than an event."""
        if len(self._kept) >= PACKED_BYTES:
            self._packed += (bytes(self._kept),)
            self._kept = bytearray()

    def drain(self) -> tuple[str, array[int]]:
        """Text and ids of all events since the last time; the ids are empty where the engine names none. Raises
        msgspec.DecodeError (or UnicodeDecodeError) when something in them was no JSON; they are gone then."""
        kept = b"".join((*self._packed, self._kept))
        self._packed, self._kept, self._drained = (), bytearray(), self.taken
        ids = b""
        if self._named:
            parts = kept.split(b"\n")
            kept, ids = b"".join(parts[::2]), b",".join(parts[1::2])
        return _decode_text(b'"' + kept + b'"'), array("I", _decode_ids(b"[" + ids + b"]"))


@cache
def _ends(behind: bytes, ids: bytes) -> tuple[bytes, bytes]:
    """What ends an event, and what ends the client's chunk where the ids are cut. The pattern lets through few of them,
    and all streams share them."""
    return behind + ids, behind + _NO_IDS + b"\r\n"


def nothing_usual(data: bytes, skip: int = 0) -> bytes | None:
    """Of an answer all of whose parts need a closer look."""
    return None


def _ends_nowhere(word: bytes) -> bool:
    """Whether no quote or backslash in it ends a text, as far as two counts tell."""
    if word.endswith(b"\\"):
        return False
    return b'"' not in word or (word.count(b'"') == word.count(b'\\"') and b"\\\\" not in word)


_decode_text = msgspec.json.Decoder(str).decode
_decode_ids = msgspec.json.Decoder(list[TokenId]).decode

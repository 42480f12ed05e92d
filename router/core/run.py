"""The usual token event of a stream with one choice: told, cut and kept by its bytes, nothing decoded.

The events of one stream are the same bytes but for their text and their token id. So when one has been read, the next
are compared with it: two searches find text and id, and only these are kept, as they stand in the JSON, until somebody
wants to know (Transcript.take_run). A token then costs its text and its id's digits instead of a whole event.

Why bytes are proof: the pattern is all of an event but the text and the id, and it ends the text at a quote. A text
that has no bare quote in it and does not end in a backslash can end nowhere else, and digits are a number. What a text
may not hold in JSON (control characters, unknown escapes) is found when it is decoded; a run with such a text is
unreadable as a whole, and is then not continued. tests/properties/test_run.py compares it with the decoding way.
"""

from __future__ import annotations

import re
from array import array

import msgspec

from router.core.chunks import TokenId

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


class Run:
    """Usual events in a row, in the order they came."""

    __slots__ = ("_before", "_behind", "_cut", "_cuts", "_gap", "_ids", "_named", "_start", "_text", "channel", "count")

    def __init__(self, *, cut_ids: bool) -> None:
        self.channel = ""
        self.count = 0
        """Events taken and not drained yet."""
        self._cuts = cut_ids
        self._before = b"?"
        self._start = 0
        self._behind = b""
        self._gap = 0
        self._named = False
        self._cut = b""
        self._text = bytearray()
        self._ids = bytearray()

    def learn(self, block: bytes) -> None:
        """Take the next events for usual that are like this one. Asked for an event that `take` did not take; nothing
        must be left to drain."""
        if block.startswith(self._before) or (found := _USUAL.fullmatch(block)) is None:
            return
        before, of_delta, of_choice, behind, ids = found.groups()
        if of_delta == b"role" or behind.startswith(b'"}') != (of_delta is not None):
            return
        self.channel = (of_delta or of_choice).decode()
        self._before, self._start = before, len(before)
        self._named = ids.endswith(b"]")
        self._behind = behind + _IDS if self._named else behind + ids + b"}]}\n\n"
        self._gap = len(self._behind)
        self._cut = behind + _NO_IDS

    def take(self, block: bytes) -> bytes | None:
        """The client's bytes of a usual event, which is then kept; None for any other, of which nothing is kept."""
        if not block.startswith(self._before):
            return None
        at = block.rfind(self._behind, self._start)
        word = block[self._start : at]
        if at <= self._start or word.find(b"\n") >= 0 or word.endswith(b"\\"):
            return None
        if word.find(b'"') >= 0 and not _all_escaped(word):
            return None
        if not self._named:
            if at + self._gap != len(block):
                return None
        else:
            digits = block[at + self._gap : -6]
            if not digits.isdigit() or not block.endswith(_CLOSING):
                return None
            self._ids += digits
            self._ids += b","
            if self._cuts:
                block = block[:at] + self._cut
        self._text += word
        self.count += 1
        return block

    def drain(self) -> tuple[str, array[int]]:
        """Text and ids of all events since the last time; the ids are empty where the engine names none. Raises
        msgspec.DecodeError (or UnicodeDecodeError) when something in them was no JSON; they are gone then."""
        text, ids = self._text, self._ids
        self._text, self._ids, self.count = bytearray(), bytearray(), 0
        return _decode_text(b'"' + text + b'"'), array("I", _decode_ids(b"[" + ids[:-1] + b"]"))


def _all_escaped(word: bytes) -> bool:
    """Whether no quote in it ends a text, as far as two counts tell."""
    return word.count(b'"') == word.count(b'\\"') and word.find(b"\\\\") < 0


_decode_text = msgspec.json.Decoder(str).decode
_decode_ids = msgspec.json.Decoder(list[TokenId]).decode

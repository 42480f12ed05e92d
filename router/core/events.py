"""Server-sent events as bytes: find their borders, tell the plain ones from those to act on, take our own fields out.

Moves bytes only; what the events say in sum is transcript.py's business. On the hot path an event costs one
`Cut.quick`, which knows vLLM's ordinary event by its first and last bytes; any other costs `examine` and `Cut.any`
(loadtest/bench_events.py).

Two findings shaped the rest. One decode into a struct that names four fields costs less than two `in` searches of
the block, and is exact: so the test of a block is a decode whose types are the test, not a list of byte patterns. And
`rfind` is several times faster than `find` here, because what we look for stands near the end.

Why a byte pattern may cut a field: inside a JSON string every quote is escaped, so `,"token_ids":[` (an unescaped quote
between a comma and a name that ends in quote and colon) can only be a member of an object. The same bytes within a text
read `,\\"token_ids\\":[`. tests/properties/test_events.py tries to break it.

Sources: https://html.spec.whatwg.org/multipage/server-sent-events.html; how vLLM ends and breaks its streams was
measured (RESUME.md).
"""

from __future__ import annotations

import msgspec

from router.core.chunks import NULL
from router.core.glimpse import Event, Seen, Trouble, decode_event, decode_fingerprint, decode_plain

DONE = b"data: [DONE]\n\n"
EVENT_LIMIT_BYTES = 8 << 20
"""The event that names the prompt's token ids takes about 7 bytes a token; a million tokens fit."""

_BOM = b"\xef\xbb\xbf"
_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
_IDS = b',"token_ids":['
_PROMPT_IDS = b',"prompt_token_ids":['
_OPENING = b'data: {"id":"'
_GOES_ON = b'"finish_reason":null'
_CLOSING = b"}]}\n\n"
_NO_IDS = b',"token_ids":null'
_NOTHING_YET = b'"delta":{},"logprobs":null,"finish_reason":null'
"""Of a chat's token whose text is held back. vLLM sends such an event only to those who ask for ids."""
_TEXT_ONLY = b',"stop_reason":null,"prompt_token_ids":null'
"""Stands between the two in completions only."""
_BEFORE_IDS = (_GOES_ON, _GOES_ON + _TEXT_ONLY)
_TAILS = tuple(
    _GOES_ON + middle + end + _CLOSING
    for end in (b',"token_ids":null', b"")
    for middle in (b"", _TEXT_ONLY, b',"stop_reason":null')
)
_LAST_TYPES = frozenset({"message_stop", "response.completed", "response.incomplete"})
_ERROR_TYPES = frozenset({"error", "response.failed"})

_encode = msgspec.json.Encoder().encode


class EventTooLarge(ValueError):  # noqa: N818 - reads as what it is where it is caught
    """The upstream sent this many bytes without ending an event."""


class Splitter:
    """Turns reads of any size into blocks: bytes that hold a whole number of events."""

    __slots__ = ("_fresh", "_limit", "held")

    def __init__(self, limit: int = EVENT_LIMIT_BYTES) -> None:
        self.held = b""
        """The begun event. When the upstream closes now, it is lost, as the standard says."""
        self._fresh = True
        self._limit = limit

    def feed(self, data: bytes) -> bytes:
        """Return the events completed by `data`, the same object where that is all; raise EventTooLarge."""
        if not self.held and not self._fresh and data.endswith(b"\n\n"):
            return data
        searched = max(0, len(self.held) - 3)
        data = self.held + data
        end = _last_end(data, searched)
        self.held = data[end:]
        if len(self.held) > self._limit:
            raise EventTooLarge(f"no event ended within {len(self.held)} bytes; the limit is {self._limit}")
        return self._without_mark(data[:end]) if end else b""

    def _without_mark(self, block: bytes) -> bytes:
        fresh, self._fresh = self._fresh, False
        return block.removeprefix(_BOM) if fresh else block


class Cut:
    """Takes out of the client's bytes what the router asked of the engine and the client did not."""

    __slots__ = ("ids", "usage")

    def __init__(self, *, ids: bool, usage: bool) -> None:
        self.ids = ids
        self.usage = usage

    def quick(self, block: bytes) -> bytes | None:
        """The client's bytes of one ordinary event of a stream with one choice, told by its first and last bytes; b""
        for one that it would not have got, None for whatever needs a closer look. Nothing is decoded: this is the way
        of nearly every token."""
        if block.find(b"\n") != len(block) - 2 or not block.startswith(_OPENING):
            return None
        at = block.rfind(_IDS)
        if at < 0:
            return block if block.endswith(_TAILS) else None
        head = block[:at]
        if not head.endswith(_BEFORE_IDS) or block.find(b"]", at) != len(block) - 6 or not block.endswith(_CLOSING):
            return None
        if not self.ids:
            return block
        return b"" if head.endswith(_NOTHING_YET) else head + _NO_IDS + _CLOSING

    def any(self, block: bytes) -> bytes:
        """For any block without trouble; the usage event goes too where it was ours."""
        if self.usage and b'"usage"' in block:
            block = without_usage(block)
        return without_ids(block) if self.ids else block


def without_ids(block: bytes) -> bytes:
    """Say null for every array of token ids that is a member of an object and not its first, as vLLM does when nobody
    asks for ids, and leave out events that it sends only because somebody does."""
    for pattern in (_IDS, _PROMPT_IDS):
        at = block.rfind(pattern)
        while at >= 0:
            block = block[: at + len(pattern) - 1] + b"null" + block[block.find(b"]", at) + 1 :]
            at = block.rfind(pattern, 0, at)
    if _NOTHING_YET in block:
        block = b"".join(event for event in split(block) if _NOTHING_YET + _NO_IDS + b"}]" not in event)
    return block


def without_usage(block: bytes) -> bytes:
    """Leave out the event that only tells the usage. Where vLLM told its fingerprint there, the event before it, with
    which the last choice ended, tells it, as it does when nobody asks for the usage."""
    kept: list[bytes] = []
    for event in split(block):
        if not is_usage(event):
            kept.append(event)
        elif kept and kept[-1].endswith(b"}\n\n") and b'"system_fingerprint"' not in kept[-1]:
            told = decode_fingerprint(data_of(event) or b"{}").system_fingerprint
            if told:
                kept[-1] = kept[-1][:-3] + b',"system_fingerprint":' + _encode(told) + b"}\n\n"
    return b"".join(kept)


def is_plain(block: bytes) -> bool:
    """Whether the block is one event that the relay only has to pass on: valid JSON with one choice that has not ended,
    no usage, no error, no ids of the prompt. Never true for anything to act on; false for some that need nothing, as
    several events at once."""
    try:
        decode_plain(block[6:])
    except msgspec.DecodeError:
        return False
    return block.startswith(b"data: ") and block.find(b"\n") == len(block) - 2 and block.find(b"\r") < 0


def examine(block: bytes) -> Seen:
    """Look at a block that is not plain, event by event."""
    end = events = finished = 0
    usage, done = b"", False
    trouble, detail = None, ""
    for event in split(block):
        plain = _PROMPT_IDS not in event and is_plain(event)  # the first event is never, and a failed decode is dear
        payload = None if plain else data_of(event)
        events += plain
        if payload is not None and not (done := payload.strip() == b"[DONE]"):
            read, trouble, detail = _read(payload)
            if trouble is not None:
                break
            events += 1
            finished += sum(choice.finish_reason is not None for choice in read.choices or ())
            usage = usage if read.usage == NULL else bytes(read.usage)
            done = read.type in _LAST_TYPES
        end += len(event)
        if done:
            break
    return Seen(
        good=block[:end], events=events, finished=finished, usage=usage, done=done, trouble=trouble, detail=detail
    )


def _read(payload: bytes) -> tuple[Event, Trouble | None, str]:
    try:
        event = decode_event(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Event(), Trouble.MALFORMED, str(error)
    if event.error is not None or event.type in _ERROR_TYPES:
        said = event.error.get("message") if isinstance(event.error, dict) else event.error
        return event, Trouble.ERROR, str(said or event.type or "the engine gave no message")
    if any(choice.finish_reason == "abort" for choice in event.choices or ()):
        return event, Trouble.ABORT, "the engine aborted the request"
    return event, None, ""


def split(block: bytes) -> list[bytes]:
    """The events of a block, each with the blank line that ends it; joined they are the block."""
    if b"\r" not in block:
        pieces = block.split(b"\n\n")
        rest = pieces.pop()
        events = [piece + b"\n\n" for piece in pieces]
        return [*events, rest] if rest else events
    events = []
    while block:
        end = min((at + len(mark) for mark in _ENDS if (at := block.find(mark)) >= 0), default=len(block))
        events.append(block[:end])
        block = block[end:]
    return events


def data_of(event: bytes) -> bytes | None:
    """The event's data, several lines joined as the standard says; None when it has none, as a comment."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return event[6:-2] or None
    lines = [line.removeprefix(b"data:") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(line.removeprefix(b" ") for line in lines) or None


def is_usage(event: bytes) -> bool:
    """Whether this is the event that ends a stream with its usage and no choices."""
    payload = data_of(event)
    if payload is None or payload == b"[DONE]":
        return False
    read, trouble, _ = _read(payload)
    return trouble is None and read.usage != NULL and not read.choices


def event_of(value: object) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"


def error_event(message: str, *, kind: str, code: str | int | None = None, param: str | None = None) -> bytes:
    """An error within a stream, of OpenAI's shape. No `[DONE]` may follow: what broke must not look complete."""
    return event_of({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _last_end(data: bytes, searched: int) -> int:
    """Where the last complete event ends, 0 if none does."""
    return max((at + len(mark) for mark in _ENDS if (at := data.rfind(mark, searched)) >= 0), default=0)

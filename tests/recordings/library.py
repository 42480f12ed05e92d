"""Reads the recorded streams of real vLLM: what was asked, the bytes that came back, and where each read ended.

    for recording in recordings(tag="greedy"):
        recording.pieces()            # wire bytes as they were received, HTTP head and chunk framing included
        recording.answer.body         # the body without its chunk framing
        recording.answer.events()     # whole SSE events, each with its blank line

record.py writes them; README.md says what there is.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(__file__).parent
INDEX = FOLDER / "index.json"
STREAMS = FOLDER / "streams"


class Answer:
    """The bytes of one HTTP response, taken apart slowly: what a fast reader must equal."""

    def __init__(self, wire: bytes) -> None:
        self.wire = wire
        self.head, _, self._rest = wire.partition(b"\r\n\r\n")

    @property
    def streamed(self) -> bool:
        return b"text/event-stream" in self.head.lower()

    @cached_property
    def body(self) -> bytes:
        """Without chunk framing; a body that was cut ends where its bytes ended."""
        if b"transfer-encoding: chunked" not in self.head.lower():
            return self._rest
        body, rest = b"", self._rest
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size or b"0", 16)
            body, rest = body + rest[:length], rest[length + 2 :]
        return body

    def events(self) -> list[bytes]:
        """Whole SSE events only: a last one without its blank line is not among them."""
        return [event + b"\n\n" for event in self.body.split(b"\n\n")[:-1]]

    def documents(self) -> list[dict[str, Any]]:
        """The JSON of the events without `[DONE]`, or of the whole body when it was not streamed."""
        if not self.streamed:
            return [json.loads(self.body)] if self.body else []
        data = [event.strip().removeprefix(b"data: ") for event in self.events()]
        return [json.loads(one) for one in data if one.startswith(b"{")]

    def indices(self) -> list[int]:
        """The indices of its choices."""
        return sorted({choice["index"] for document in self.documents() for choice in document.get("choices", ())})

    def choices(self, index: int = 0) -> Iterator[dict[str, Any]]:
        for document in self.documents():
            for choice in document.get("choices", ()):
                if choice["index"] == index:
                    yield choice

    def token_ids(self, choice: int = 0) -> list[int]:
        """The ids generated for a choice, where they were asked for."""
        return [token for part in self.choices(choice) for token in part.get("token_ids") or ()]

    def prompt_token_ids(self, choice: int = 0) -> list[int]:
        """The prompt's ids: beside the choices in chat, inside the choice in completions."""
        for document in self.documents():
            for place in (document, *document.get("choices", ())):
                if place.get("prompt_token_ids") and place.get("index", choice) == choice:
                    return list(place["prompt_token_ids"])
        return []

    def text(self, choice: int = 0) -> str:
        """The text of a choice, chat or completions, streamed or not."""
        return "".join(text_of(part) for part in self.choices(choice))


class Recording(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One exchange with a real server."""

    name: str
    about: str
    tags: tuple[str, ...] = ()
    server: str
    """`a` and `b` are equal servers; other names say what was special about them."""
    endpoint: str
    body: str
    """The request body as it was sent."""
    request_headers: dict[str, str] = {}
    status: int
    """0 when the connection ended before a status line."""
    ending: str
    """`complete` (HTTP message whole), `eof` (closed early), `reset`, or `silent` (open, but nothing more came)."""
    reads: tuple[int, ...]
    """Sizes of the reads from the socket, in order; they add up to the length of the wire bytes."""
    continues: str = ""
    """Name of the recording that this one continues by token ids (tag `continuation`) or repeats (tag `replay`)."""
    after: int = 0
    """How many of that recording's tokens (of `choice`) were in the continuation's prompt."""
    choice: int = 0

    @property
    def request(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded

    @cached_property
    def answer(self) -> Answer:
        return Answer(gzip.decompress((STREAMS / f"{self.name}.gz").read_bytes()))

    def pieces(self) -> list[bytes]:
        at, pieces = 0, []
        for size in self.reads:
            pieces.append(self.answer.wire[at : at + size])
            at += size
        return pieces


def text_of(choice: dict[str, Any]) -> str:
    said = choice.get("delta") or choice.get("message") or {}
    return choice.get("text") or said.get("content") or ""


def recordings(tag: str = "") -> list[Recording]:
    """All recordings, or those with a tag."""
    return [one for one in _index() if not tag or tag in one.tags]


def recording(name: str) -> Recording:
    return next(one for one in _index() if one.name == name)


@cache
def _index() -> list[Recording]:
    return msgspec.json.decode(INDEX.read_bytes(), type=list[Recording])

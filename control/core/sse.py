"""Read a streamed chat answer: bytes in, the text a person sees out, and the figures of how fast it came.

Used by `switchyard chat` and by the first question of `switchyard up`, which are clients like any other; the router
has its own, faster way.
"""

from __future__ import annotations

from typing import Any

import msgspec

from control.core import durations


class Broken(ValueError):  # noqa: N818 - reads as what the answer is
    """The stream said, or showed, that the answer is not whole."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    ttft_s: float
    total_s: float
    tokens: int
    finish: str

    @property
    def tokens_per_s(self) -> float:
        """Of the time after the first token, which is what a reader sees flowing."""
        streaming_s = self.total_s - self.ttft_s
        return (self.tokens - 1) / streaming_s if self.tokens > 1 and streaming_s > 0 else 0.0


def told(model: str, figures: Figures) -> str:
    """The figures in a line for people."""
    cut = "" if figures.finish == "stop" else f", ended by {figures.finish}"
    return (
        f"{model}: first token after {durations.show(figures.ttft_s)}, {figures.tokens} tokens at "
        f"{figures.tokens_per_s:.0f} tokens/s{cut}"
    )


class Answer:
    """Feed it what arrives with the time it arrived; it returns the new text. `now` is seconds on any steady clock."""

    def __init__(self, asked_at: float) -> None:
        self._asked_at = asked_at
        self._first_at: float | None = None
        self._last_at = asked_at
        self._rest = b""
        self._events = 0
        self._usage_tokens = 0
        self._finish = ""
        self._done = False

    def feed(self, data: bytes, now: float) -> str:
        """Raise Broken when the stream carries an error event."""
        *events, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        return "".join(self._event(event, now) for event in events)

    def figures(self) -> Figures:
        """Raise Broken when the answer ended early."""
        if not self._done or not self._finish:
            raise Broken("the answer broke off before its end")
        first_at = self._last_at if self._first_at is None else self._first_at
        return Figures(
            ttft_s=first_at - self._asked_at,
            total_s=self._last_at - self._asked_at,
            tokens=self._usage_tokens or self._events,
            finish=self._finish,
        )

    def _event(self, event: bytes, now: float) -> str:
        data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if not data:
            return ""
        if data == b"[DONE]":
            self._done = True
            return ""
        chunk = _decode(data)
        if error := chunk.get("error"):
            raise Broken(str(error.get("message", error)) if isinstance(error, dict) else str(error))
        self._usage_tokens = (chunk.get("usage") or {}).get("completion_tokens", 0) or self._usage_tokens
        return self._choice(chunk, now)

    def _choice(self, chunk: dict[str, Any], now: float) -> str:
        text = ""
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            text += delta.get("content") or delta.get("reasoning_content") or ""
            self._finish = choice.get("finish_reason") or self._finish
        if text:
            self._events += 1
            self._first_at = now if self._first_at is None else self._first_at
            self._last_at = now
        return text


def _decode(data: bytes) -> dict[str, Any]:
    try:
        chunk = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise Broken(f"the answer holds an event that is not JSON: {data[:80]!r}") from error
    return chunk if isinstance(chunk, dict) else {}

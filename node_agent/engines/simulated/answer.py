"""One answer of the toy model as the engine would hand it out: tokens with the text that is ready to be shown.

Knows where text is held back (half characters, the beginning of a stop string) and what ends an answer (EOS, a stop
string or token, the token limit). Pure; knows no wire format.
"""

from __future__ import annotations

import msgspec

from node_agent.engines.simulated.tokens import EOS, PIECES, Model, piece

_TEXT: list[str | None] = []
"""Text by id of the vocabulary, None where a piece is half a character."""
for _piece in PIECES:
    try:
        _TEXT.append(_piece.decode())
    except UnicodeDecodeError:
        _TEXT.append(None)
_KNOWN = len(_TEXT)


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """What of the request shapes an answer."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False


class Delta(msgspec.Struct, gc=False):
    """What is new since the last one: ids may come without text, text with several ids."""

    ids: list[int]
    text: str
    finish: str | None = None
    stop_reason: str | int | None = None

    def merge(self, later: Delta) -> None:
        self.ids += later.ids
        self.text += later.text
        self.finish = later.finish
        self.stop_reason = later.stop_reason


class Answer:
    __slots__ = ("_bytes", "_held", "_hold_back", "_plain", "count", "model", "sampling")

    def __init__(self, model: Model, sampling: Sampling) -> None:
        self.model = model
        self.sampling = sampling
        self.count = 0
        self._bytes = b""
        """Of a character that is not complete."""
        self._held = ""
        """Text that may turn out to begin a stop string; not yet sent, unless stop strings are to be included."""
        self._hold_back = max((len(s) for s in sampling.stop), default=1) - 1
        self._plain = not (sampling.stop or sampling.stop_token_ids)

    def take(self) -> Delta:
        """The next token. Not to be asked again after a delta with a finish."""
        sampling = self.sampling
        self.count += 1
        token = self.model.draw(not sampling.ignore_eos and self.count > sampling.min_tokens)
        text = _TEXT[token] if token < _KNOWN and not self._bytes else None
        if text is None:
            text = self._decode(token)
        delta = Delta([token], text)
        if self._plain:
            if token == EOS and not sampling.ignore_eos:
                delta.finish = "stop"
            elif self.count >= sampling.max_tokens:
                delta.finish = "length"
            else:
                return delta
            delta.text += self._flush()
            return delta
        return self._watch(delta, token)

    def _decode(self, token: int) -> str:
        """Text is shown once it ends with a whole character."""
        self._bytes += piece(token)
        try:
            text = self._bytes.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data" and len(self._bytes) - error.start < 4:
                return ""
            text = self._bytes.decode(errors="replace")
        self._bytes = b""
        return text

    def _flush(self) -> str:
        text, self._bytes = self._bytes.decode(errors="replace"), b""
        return text

    def _watch(self, delta: Delta, token: int) -> Delta:
        """The way with stops: text leaves only when no stop string can begin in it."""
        sampling = self.sampling
        text = self._held + delta.text
        sent = len(self._held) if sampling.include_stop else 0
        late = self.count > sampling.min_tokens
        if token == EOS and not sampling.ignore_eos:
            delta.finish = "stop"
        elif late and token in sampling.stop_token_ids:
            delta.finish, delta.stop_reason = "stop", token
            text = text if sampling.include_stop else self._held
        elif late and (found := self._stop_in(text)):
            at, stop = found
            delta.finish, delta.stop_reason = "stop", stop
            delta.text = text[sent : at + len(stop)] if sampling.include_stop else text[:at]
            return delta
        elif self.count >= sampling.max_tokens:
            delta.finish = "length"
        if delta.finish:
            delta.text = text[sent:] + self._flush()
            return delta
        ready = max(0, len(text) - self._hold_back)
        delta.text, self._held = text[sent:] if sampling.include_stop else text[:ready], text[ready:]
        return delta

    def _stop_in(self, text: str) -> tuple[int, str] | None:
        found = [(at, stop) for stop in self.sampling.stop if (at := text.find(stop)) >= 0]
        return min(found) if found else None

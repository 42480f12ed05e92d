"""Makes of a new leg's events the events that the broken stream would have had.

Reads the new leg's blocks (after events.examine: troubles never come here) and gives blocks of the first engine's
shape: its id, object, created and model, its choice numbers, its token ids (cut from the client's bytes like any), no
role twice, one usage at the end that counts the prompt and each delivered token once. So the same cut, the same list of
kept blocks and the same transcript go on behind it, over any number of breaks.

Raises Diverged, and has then given nothing of the differing event; the caller plans anew or ends the stream with an
error. Never joins over a difference.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.core.asked import Asked, Endpoint
from router.core.chunks import NULL, decode_chunk, decode_clean, tokens_of
from router.core.continuation import Plan, Way
from router.core.events import DONE, data_of, event_of, split
from router.core.seam import Diverged, Seam
from router.core.transcript import HEAD, Choice, Transcript
from router.core.usage import Source, Usage, charged, read, render

PROMPT_CHARS_PER_TOKEN = 32
"""A first text longer than this per token, with all that was delivered in it, is the prompt and no answer."""


class Splice:
    """One leg behind a break. The transcript must hold all that was delivered, and goes on folding what comes out."""

    def __init__(self, plan: Plan, transcript: Transcript, asked: Asked) -> None:
        self.whole = False
        """The leg came to its good end. When the transcript is not finished then, choices wait for another plan."""
        self._plan = plan
        self._asked = asked
        self._head = dict(transcript.head)
        self._by_ids = plan.way is Way.IDS
        self._rebuilds = self._by_ids and asked.endpoint is Endpoint.CHAT
        choices = transcript.choices
        for index in plan.choices if not plan.exact else ():
            if index in choices:
                choices[index].cut_back()
        self._seams = {i: Seam(choice, choice.mark if self._by_ids else None) for i, choice in choices.items()}
        self._texts = {i: choice.main.decode() for i, choice in choices.items()} if self._by_ids else {}
        self._prompt_known = transcript.prompt_tokens > 0
        self._prompt_tokens = transcript.prompt_tokens
        self._delivered = transcript.tokens
        self._foreign = b"?"
        self._own = b""
        self._totalled = False
        self._computed = 0
        self._reported = b""
        self._extra: dict[str, Any] = {}

    def feed(self, block: bytes) -> bytes:
        """The events to keep and, after the cut, to send; b"" while the leg repeats what was delivered."""
        quick = self._quick(block)
        return b"".join([self._event(event) for event in split(block)]) if quick is None else quick

    def cost(self) -> Usage:
        """What this leg cost its engine so far, repeated tokens and the prompt's second prefill included."""
        reported = read(self._reported)
        if reported is not None:
            return reported
        return Usage(prompt_tokens=self._plan.prefill_tokens, output_tokens=self._computed, source=Source.COUNTED)

    def _quick(self, block: bytes) -> bytes | None:
        """The usual event behind the seam, of which only the head and the choice's number change; else None."""
        try:
            (said,) = decode_clean(block[6:]).choices
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        index = said.index
        if self._by_ids:
            index = self._plan.choices[index] if index < len(self._plan.choices) else -1
        seam = self._seams.get(index)
        if seam is None or not seam.passes or index in self._texts or not block.startswith(self._foreign):
            return None
        if self._rebuilds:
            choice = {"index": index, "delta": {"content": said.text}, "logprobs": None, "finish_reason": None}
            new = event_of(self._head | {"choices": [choice | {"token_ids": said.token_ids}]})
        elif index == said.index:
            new = self._own + block[len(self._foreign) :]
        else:
            return None
        self._delivered += 1
        self._computed += 1
        return new

    def _learn(self, event: bytes, said: dict[str, Any]) -> None:
        """The bytes before the choices of this leg's events, and what stands there in the client's."""
        before, mark, _ = event.partition(b'"choices":[')
        if list(said)[:5] == [*HEAD, "choices"] and self._head:
            self._foreign = before + mark
            self._own = event_of(self._head)[:-3] + b"," + mark

    def _event(self, event: bytes) -> bytes:
        payload = data_of(event)
        if payload is None:
            return event
        if payload == b"[DONE]":
            return self._end()
        try:
            chunk = decode_chunk(payload)
            said: dict[str, Any] = msgspec.json.decode(payload)
            self._computed += sum(map(tokens_of, chunk.choices))
            if chunk.usage != NULL:
                self._reported = bytes(chunk.usage)
            if self._foreign == b"?":
                self._learn(event, said)
            return self._chunk(said)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Diverged(f"the new leg sent an event that is no chunk: {error}") from error

    def _end(self) -> bytes:
        self.whole = all(index in self._seams and self._seams[index].finished for index in self._plan.choices)
        if not self._finished:
            return b""
        return (self._usage_event() if self._by_ids else b"") + DONE

    def _chunk(self, said: dict[str, Any]) -> bytes:
        if not said.get("choices"):
            return self._without_choices(said)
        choices = [new for new in map(self._choice, said["choices"]) if new is not None]
        if not choices:
            return b""
        new = said | self._head | {"choices": choices}
        if self._prompt_known:
            new.pop("prompt_token_ids", None)
        if self._rebuilds:
            new = self._head | {"choices": choices}
        return event_of(new)

    def _choice(self, said: dict[str, Any]) -> dict[str, Any] | None:
        index = said.get("index", 0)
        if self._by_ids:
            if index >= len(self._plan.choices):
                raise Diverged(f"the new leg has a choice {index} that nobody asked for")
            index = self._plan.choices[index]
            self._guard(index, said)
            said = _as_chat(said | {"index": index}) if self._rebuilds else said | {"index": index}
        seam = self._seams.get(index)
        if seam is None:
            seam = self._seams[index] = Seam(Choice())
        elif self._prompt_known:
            said = {name: value for name, value in said.items() if name != "prompt_token_ids"}
        new = seam.cut(said)
        if new is None:
            return None
        self._delivered += len(new.get("token_ids") or ())
        return new

    def _guard(self, index: int, said: dict[str, Any]) -> None:
        """vLLM begins with the whole prompt's text when the prompt ends within a character. We never ask it so, as
        marks lie between characters; but a hidden system prompt must not depend on that alone."""
        text, delivered = said.get("text") or "", self._texts.pop(index, "")
        if delivered and delivered in text and len(text) > PROMPT_CHARS_PER_TOKEN * len(said.get("token_ids") or "1"):
            raise Diverged("the new leg repeats its prompt")
        if not text and delivered:
            self._texts[index] = delivered

    def _without_choices(self, said: dict[str, Any]) -> bytes:
        if not self._by_ids or said.get("usage") is None:
            return event_of(said | self._head)
        self._extra = {name: value for name, value in said.items() if name != "usage"}
        return self._usage_event() if self._finished else b""

    def _usage_event(self) -> bytes:
        """Of a continuation by ids the engine counts other things than the client must pay for."""
        if self._totalled:
            return b""
        self._totalled = True
        reported = read(self._reported)
        cached = min(reported.cached_tokens, self._prompt_tokens) if reported else -1
        usage = Usage(prompt_tokens=self._prompt_tokens, cached_tokens=cached, output_tokens=self._delivered)
        return event_of(self._extra | self._head | {"choices": [], "usage": render(usage)})

    @property
    def _finished(self) -> bool:
        return sum(seam.finished for seam in self._seams.values()) >= self._asked.choices


def closing(transcript: Transcript) -> bytes:
    """The end of a stream of which only the end is missing (Way.FINISH). Usage that we could only guess is left out."""
    usage = charged(transcript)
    known = usage.source is not Source.ESTIMATED and not transcript.totalled
    total = event_of(transcript.head | {"choices": [], "usage": render(usage)}) if known else b""
    return total if transcript.done else total + DONE


def _as_chat(said: dict[str, Any]) -> dict[str, Any]:
    """A completion's choice as a chat's."""
    new = {"index": said["index"], "delta": {"content": said["text"]} if said.get("text") else {}, "logprobs": None}
    if said.get("logprobs"):
        new["logprobs"] = {"content": _as_entries(said["logprobs"])}
    new["finish_reason"] = said.get("finish_reason")
    if new["finish_reason"]:
        new["stop_reason"] = said.get("stop_reason")
    return new | {"token_ids": said.get("token_ids")}


def _as_entries(logprobs: dict[str, Any]) -> list[dict[str, Any]]:
    """A completion's logprobs as a chat's, without alternatives (obstacles.py sees to that)."""
    pairs = zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)
    return [
        {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
        for token, logprob in pairs
    ]

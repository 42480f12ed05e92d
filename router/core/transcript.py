"""What a client has of an answer, folded from the kept events into about ten bytes a token.

The relay appends raw blocks to a list and folds that list now and then, or when it must know: at a break, to continue
from exactly here, and at the end, for the usage. Folding in any portions gives the same transcript. A splice gives
events of the same shape as the first engine's, so the transcript goes on over any number of legs and never learns of
them.

Text is kept as UTF-8 by channel: `text` of a completion; `content`, `reasoning` and any other text field of a chat's
delta; name and arguments of each tool call. That is enough to compare a replayed answer with the delivered one,
whatever pieces either came in.

Counting: one event is not one token. An event may carry ids without text (half a character, text held back for a stop
string or a parser) or many ids at once. So ids are counted where the engine names them, else events that carried text.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

import msgspec

from router.core.asked import Asked
from router.core.chunks import NULL, Chunk, Said, calls_of, decode_chunk, decode_clean, texts_of
from router.core.events import data_of, split
from router.core.run import Run

MAIN = ("text", "content")
"""The channel that a completion, or a chat without reasoning or tools, has alone."""


HEAD = ("id", "object", "created", "model")
"""What every event of a stream repeats, in the engine's order."""


class Mark(msgspec.Struct, frozen=True):
    """A point up to which every id has its whole text: the engine held nothing back. Lengths of what a choice has."""

    ids: int = 0
    text: int = 0
    """Bytes of the main channel."""
    entries: int = 0
    """Logprob entries."""
    offset: int = 0
    """Where the next token's `text_offset` would be. vLLM adds up the tokens' own texts, not what it sent of them."""


class Choice:
    """One answer as far as it came."""

    __slots__ = ("channels", "entries", "finish", "ids", "mark", "offset", "prompt_ids", "role", "texts", "tool_ids")

    def __init__(self) -> None:
        self.ids = array("I")
        self.prompt_ids: array[int] | None = None
        self.channels: dict[str, bytearray] = {}
        self.entries = 0
        """Logprob entries."""
        self.offset = 0
        self.texts = 0
        """Events that carried text."""
        self.tool_ids: dict[int, str] = {}
        self.role = ""
        self.finish = ""
        self.mark = Mark()

    @property
    def begun(self) -> bool:
        """Whether the client has anything of it that another run could contradict."""
        return bool(self.ids or self.finish or self.texts)

    @property
    def main(self) -> bytearray:
        return self.channels.get("text") or self.channels.get("content") or bytearray()

    def text_of(self, channel: str) -> str:
        return self.channels.get(channel, b"").decode()

    def say(self, channel: str, text: str) -> None:
        self.channels.setdefault(channel, bytearray()).extend(text.encode())

    def stand(self, held: int = 0) -> None:
        """Mark that here no text is held back, but for that of the last `held` ids."""
        self.mark = Mark(len(self.ids) - held, len(self.main), self.entries, self.offset)

    def cut_back(self) -> None:
        """Forget the ids whose text was held back, and that nobody has seen."""
        del self.ids[self.mark.ids :]


class Transcript:
    """All choices of one request, and what the events say of themselves."""

    __slots__ = (
        "asked",
        "choices",
        "done",
        "events",
        "fingerprint",
        "head",
        "opaque",
        "totalled",
        "unreadable",
        "usage",
    )

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.head: dict[str, Any] = {}
        """id, object, created and model of the first event: every event the client gets bears these."""
        self.fingerprint = ""
        self.choices: dict[int, Choice] = {}
        self.usage = b""
        """The last usage object that was delivered, as JSON."""
        self.totalled = False
        """Whether the event with the usage of the whole was among the delivered."""
        self.events = 0
        self.done = False
        self.opaque = ""
        """A field of a delta that was delivered and that we cannot compare (audio, images)."""
        self.unreadable = 0
        """Events that are no chunk of this endpoint."""

    def fold(self, blocks: Iterable[bytes]) -> None:
        """Take in delivered blocks, in order. Each is whole events; what is to be kept from the client is not here."""
        index, ids, words = 0, array("I"), list[str]()
        for block in blocks:
            try:
                (said,) = decode_clean(block[6:]).choices
                word = said.text if said.delta is None else said.delta.content
            except (msgspec.DecodeError, UnicodeDecodeError):
                word = None
            if word is None or said.index != index or not self.head:
                self._take_run(index, ids, words)
                ids, words = array("I"), []
            if word is None or not self.head:
                self._take_block(block)
            else:
                index = said.index
                ids.append(said.token_ids[0])
                words.append(word)
        self._take_run(index, ids, words)

    def take_run(self, run: Run) -> None:
        """Take in delivered events that were kept as a run, behind those that were folded. Nothing is left in it."""
        count = run.count
        try:
            text, ids = run.drain()
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.unreadable += count
            return
        choice = self._choice(0)
        choice.say(run.channel, text)
        choice.ids.extend(ids)
        choice.texts += count
        if ids:
            choice.stand()
        self.events += count

    @property
    def finished(self) -> bool:
        """Whether every choice the client asked for came to its end."""
        return sum(bool(choice.finish) for choice in self.choices.values()) >= self.asked.choices

    @property
    def begun(self) -> bool:
        return any(choice.begun for choice in self.choices.values())

    @property
    def names_ids(self) -> bool:
        return any(choice.ids for choice in self.choices.values())

    @property
    def tokens(self) -> int:
        """Tokens delivered; events that carried text where the engine names no ids."""
        if self.names_ids:
            return sum(len(choice.ids) for choice in self.choices.values())
        return sum(choice.texts for choice in self.choices.values())

    @property
    def prompt_tokens(self) -> int:
        """By the ids the engine named; 0 when it did not. Choices of one prompt share it and it counts once."""
        per_prompt = max(1, self.asked.params.n or 1)
        firsts = (choice for index, choice in self.choices.items() if index % per_prompt == 0)
        return sum(len(choice.prompt_ids or ()) for choice in firsts)

    def _take_run(self, index: int, ids: array[int], words: list[str]) -> None:
        """Clean events of one choice in a row, in one go."""
        if not words:
            return
        choice = self._choice(index)
        choice.say("content" if self.head["object"] == "chat.completion.chunk" else "text", "".join(words))
        choice.ids.extend(ids)
        choice.texts += len(words)
        choice.stand()
        self.events += len(words)

    def _take_block(self, block: bytes) -> None:
        for event in split(block):
            payload = data_of(event)
            if payload == b"[DONE]":
                self.done = True
            elif payload is not None:
                try:
                    self._take(decode_chunk(payload))
                except (msgspec.DecodeError, UnicodeDecodeError):
                    self.unreadable += 1

    def _take(self, chunk: Chunk) -> None:
        self.events += 1
        if not self.head and chunk.id:
            self.head = {name: getattr(chunk, name) for name in HEAD}
        self.fingerprint = chunk.system_fingerprint or self.fingerprint
        for said in chunk.choices:
            choice = self._choice(said.index)
            self._hear(choice, said)
            prompt_ids = said.prompt_token_ids or chunk.prompt_token_ids
            if prompt_ids and choice.prompt_ids is None:
                choice.prompt_ids = array("I", prompt_ids)
        if chunk.usage != NULL and (not chunk.choices or self.asked.choices == 1):
            self.usage = bytes(chunk.usage)
            self.totalled = self.totalled or not chunk.choices

    def _hear(self, choice: Choice, said: Said) -> None:
        spoken = self._hear_texts(choice, {"text": said.text} if said.delta is None else said.delta)
        choice.ids.extend(said.token_ids or ())
        if said.logprobs is not None:
            choice.entries += len(said.logprobs.content or said.logprobs.tokens or ())
            if said.logprobs.text_offset and said.logprobs.tokens:
                choice.offset = said.logprobs.text_offset[-1] + len(said.logprobs.tokens[-1])
        if spoken:
            choice.texts += 1
            if len(said.token_ids or ()) == 1:
                choice.stand()
        if said.finish_reason and said.finish_reason != "abort":
            choice.finish = said.finish_reason

    def _hear_texts(self, choice: Choice, delta: dict[str, Any]) -> bool:
        """Take the texts of a delta; true when there were any."""
        spoken = False
        for name, value in delta.items():
            if name == "role":
                choice.role = str(value or "")
                continue
            for channel, text in texts_of(name, value):
                if text is None:
                    self.opaque = channel
                elif text:
                    choice.say(channel, text)
                    spoken = True
            for call in calls_of(value) if name == "tool_calls" else ():
                if call.id:
                    choice.tool_ids.setdefault(call.index, call.id)
        return spoken

    def _choice(self, index: int) -> Choice:
        choice = self.choices.get(index)
        if choice is None:
            choice = self.choices[index] = Choice()
        return choice

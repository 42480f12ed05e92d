"""What people send: prompts of realistic lengths with shared beginnings, made of filler, the same for the same seed.

Lengths are drawn from the shipped traces. Texts mean nothing: they are common English words, about one token each in
most tokenisers. What is shared is as in real use: a service's system prompt at the start of everything, a conversation
that sends its whole past with every turn, prefix blocks of a replayed trace.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

from loadtest import traces
from loadtest.traces import Arrival

_WORDS = (
    "the a one every this that some many few all river stone light morning evening road house garden window door table "
    "letter story song voice hand eye name word line page book city street market bridge engine signal track yard "
    "train wheel bell clock hour minute day night week year spring summer autumn winter rain snow wind cloud sky star "
    "moon sun field forest tree leaf branch root seed flower fruit bread water milk salt small large long short old "
    "new young quiet loud bright dark warm cold slow quick early late open closed round deep high low clear strange "
    "simple careful patient honest gentle runs walks waits turns opens closes brings sends finds keeps holds leaves "
    "and or but while because when where so then again always often never almost alone near far over under between"
)
WORDS = tuple(_WORDS.split())
SYSTEM_TOKENS = 200
"""A system prompt of ordinary length; the same for all users of one service."""


class Lengths:
    """Pairs of prompt and output length, drawn together from a trace and cut to what the engine can hold."""

    def __init__(self, trace: str, rng: random.Random, *, max_prompt: int = 4096, max_output: int = 1024) -> None:
        arrivals = _lengths(trace)
        self._pairs = [(min(p, max_prompt), min(o, max_output)) for p, o in arrivals if p and o]
        self._rng = rng

    def draw(self) -> tuple[int, int]:
        return self._rng.choice(self._pairs)


class Conversation:
    """One user who talks in turns; every turn sends all that was said before."""

    def __init__(self, model: str, lengths: Lengths, rng: random.Random, *, services: int = 4, turns: int = 5) -> None:
        self._model = model
        self._lengths = lengths
        self._rng = rng
        self._services = services
        self._turns = turns
        self._left = 0
        self._messages: list[dict[str, str]] = []

    def next_chat(self, *, stream: bool = True) -> dict[str, Any]:
        """The body of the next request; a new conversation begins when the last one has had its turns."""
        if not self._left:
            service = self._rng.randrange(self._services)
            self._messages = [{"role": "system", "content": filler(f"service {service}", SYSTEM_TOKENS)}]
            self._left = 1 + self._rng.randrange(2 * self._turns - 1)
        self._left -= 1
        prompt, output = self._lengths.draw()
        said = max(8, min(prompt - SYSTEM_TOKENS, prompt // 2 if len(self._messages) > 1 else prompt))
        self._messages.append({"role": "user", "content": filler(self._rng.random(), said)})
        body = {"model": self._model, "messages": list(self._messages), "max_tokens": output}
        return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body

    def answered(self, text: str) -> None:
        """What came back becomes part of the next turn."""
        self._messages.append({"role": "assistant", "content": text or "..."})

    def broken(self) -> None:
        """The turn failed: the next request begins a new conversation."""
        self._left = 0


def completion(model: str, lengths: Lengths, rng: random.Random) -> dict[str, Any]:
    prompt, output = lengths.draw()
    return {"model": model, "prompt": filler(rng.random(), prompt), "max_tokens": output}


def embeddings(model: str, lengths: Lengths, rng: random.Random, *, inputs: int = 8) -> dict[str, Any]:
    """A few passages at once, as a retrieval pipeline sends them."""
    texts = [filler(rng.random(), max(4, lengths.draw()[0] // 8)) for _ in range(inputs)]
    return {"model": model, "input": texts}


def replayed(arrival: Arrival, model: str, *, number: int, scale: float = 1.0, max_prompt: int = 0) -> dict[str, Any]:
    """The chat request of an arrival. Equal block ids give equal text, so that prefixes are shared as in the trace.

    `scale` shrinks prompts and their blocks alike (shares of hits stay), `max_prompt` cuts them after that."""
    wanted = max(1, round(arrival.prompt_tokens * scale))
    wanted = min(wanted, max_prompt) if max_prompt else wanted
    size = max(1, round(traces.BLOCK_TOKENS * scale))
    whole, rest = divmod(wanted, size)
    parts = [_block(block, size) for block in arrival.blocks[:whole]]
    missing = wanted - size * len(parts)
    if arrival.blocks and whole < len(arrival.blocks) and rest:
        parts.append(filler(arrival.blocks[whole], rest))
    elif missing > 0:
        parts.append(filler(f"request {number}", missing))
    return {
        "model": model,
        "messages": [{"role": "user", "content": "".join(parts)}],
        "max_tokens": max(1, arrival.output_tokens),
        "stream": True,
    }


def filler(key: float | str, tokens: int) -> str:
    """About so many tokens of text, always the same for the same key."""
    return " " + " ".join(random.Random(key).choices(WORDS, k=max(1, tokens)))


@lru_cache(maxsize=8192)
def _block(block: int, tokens: int) -> str:
    return filler(block, tokens)


@lru_cache(maxsize=4)
def _lengths(trace: str) -> tuple[tuple[int, int], ...]:
    return tuple((arrival.prompt_tokens, arrival.output_tokens) for arrival in traces.load(trace))

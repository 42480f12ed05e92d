"""What clients live through while something is broken: long streams under way, and a steady trickle of new requests.

Every stream's answer is known beforehand (`references`), so nothing lost or doubled goes unseen. It breaks nothing.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from loadtest import answers
from loadtest.answers import Answer
from loadtest.client import Client, Exchange
from loadtest.house import MODEL
from loadtest.processes import Process
from loadtest.rig import await_ready_lines

WORDS = ("river", "stone", "light", "road", "house", "garden", "window", "letter", "story", "song", "bread", "water")
LIMIT_S = 180.0


class Wish(msgspec.Struct, frozen=True):
    path: str
    body: dict[str, Any]

    @property
    def by_chance(self) -> bool:
        """Sampled without a seed: only its end and its counts can be known beforehand."""
        return "temperature" not in self.body


def wishes(count: int, *, seed: int, tokens: tuple[int, int], sampled: bool = False) -> list[Wish]:
    """Streams at temperature 0, each with a prompt of its own; a third of them completions. With `sampled` a quarter is
    left to chance instead, as most clients do."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        prompt = f"{number}: " + " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 30)))
        body: dict[str, Any] = {
            "model": MODEL,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": rng.randint(*tokens),
            "ignore_eos": True,
        }
        if sampled and number % 4 == 3:
            del body["temperature"]
        if number % 3 == 2:
            made.append(Wish("/v1/completions", body | {"prompt": prompt}))
        else:
            made.append(Wish("/v1/chat/completions", body | {"messages": [{"role": "user", "content": prompt}]}))
    return made


async def references(directory: Path, wished: Sequence[Wish]) -> list[Answer]:
    """What an engine that nobody disturbs answers: the simulated one is deterministic at temperature 0."""
    argv = (
        sys.executable,
        "-m",
        "node_agent.engines.simulated",
        "--port",
        "0",
        "--model",
        MODEL,
        "--profile",
        "instant",
    )
    with Process(argv, name="reference", directory=directory) as process:
        (address,) = await asyncio.to_thread(await_ready_lines, process, 1)
        host, _, port = address.rpartition(":")
        client = Client(host, int(port))
        try:
            return [answers.read((await client.post(wish.path, wish.body)).text()) for wish in wished]
        finally:
            client.close()


class Seen(msgspec.Struct, kw_only=True):
    """One stream as its client saw it."""

    wish: Wish
    status: int = 0
    error: str = ""
    """Of the connection, or in the stream; empty when it is complete."""
    differences: list[str] = []
    """From the known answer, and what no single engine would have sent."""
    gap_s: float = 0.0
    """The longest between two events."""
    first_event_s: float = 0.0
    finished_at: float = 0.0


async def stream(client: Client, wish: Wish, right: Answer) -> Seen:
    request = client.encode(wish.path, wish.body)
    exchange = await client.open(request, keep=True)
    try:
        async with asyncio.timeout(LIMIT_S):
            await exchange.ended()
    except TimeoutError:
        return Seen(wish=wish, error=f"no end after {LIMIT_S:g} s", finished_at=monotonic())
    finally:
        exchange.abort()
    return judge(wish, exchange, right)


def judge(wish: Wish, exchange: Exchange, right: Answer) -> Seen:
    answer = answers.read(exchange.text())
    error = exchange.error or answer.error
    if exchange.status != 200:
        error = f"status {exchange.status}: {exchange.error or exchange.text()[:200].decode(errors='replace')}"
    elif not answer.complete and not error:
        error = "the stream ended without being complete"
    return Seen(
        wish=wish,
        status=exchange.status,
        error=error,
        differences=answer.oddities + ([] if error else answer.differences(right, texts=not wish.by_chance)),
        gap_s=exchange.longest_gap_s,
        first_event_s=exchange.first_event_s,
        finished_at=monotonic(),
    )


class Try(msgspec.Struct, frozen=True):
    """One small request of the trickle."""

    sent_at: float
    ended_at: float
    error: str


class Trickle:
    """A small new request every so often, until it is stopped, and one more then. No request waits for another."""

    def __init__(self, client: Client, *, every_s: float = 0.1, patience_s: float = 30.0) -> None:
        self._client = client
        self._every_s = every_s
        self._patience_s = patience_s
        self._stop = asyncio.Event()
        self.tries: list[Try] = []

    async def run(self) -> None:
        number, last = 0, False
        async with asyncio.TaskGroup() as group:
            while not last:
                number, last = number + 1, self._stop.is_set()
                group.create_task(self._one(number))
                await asyncio.sleep(self._every_s)

    def stop(self) -> None:
        self._stop.set()

    async def _one(self, number: int) -> None:
        body = {"model": MODEL, "prompt": f"trickle {number}", "max_tokens": 2, "temperature": 0}
        request = self._client.encode("/v1/completions", body | {"stream": number % 2 == 0})
        sent_at = monotonic()
        error = ""
        try:
            async with asyncio.timeout(self._patience_s):
                exchange = await self._client.fetch(request)
                if exchange.status != 200 or exchange.error:
                    error = f"status {exchange.status} {exchange.error}"
                elif number % 2 == 0 and not exchange.complete:
                    error = "no [DONE]"
        except TimeoutError:
            error = f"no answer within {self._patience_s:g} s"
        self.tries.append(Try(sent_at, monotonic(), error))

    @property
    def last(self) -> Try:
        """Sent once the trickle was stopped, and its outcome."""
        return max(self.tries, key=lambda tried: tried.sent_at)

    @property
    def errors(self) -> list[str]:
        return [tried.error for tried in self.tries if tried.error]

    @property
    def slowest_s(self) -> float:
        return max((tried.ended_at - tried.sent_at for tried in self.tries if not tried.error), default=0.0)

    def failing_s(self) -> float:
        """The longest time in which everything that was sent failed, from the first send to the last."""
        longest = began = 0.0
        for tried in sorted(self.tries, key=lambda t: t.sent_at):
            if not tried.error:
                began = 0.0
                continue
            began = began or tried.sent_at
            longest = max(longest, tried.sent_at - began + self._every_s)
        return longest

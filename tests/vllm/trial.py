"""Asks for answers, directly and through the router, and judges whether those that broke came out as unbroken ones.

An answer sampled without a seed has no equal. Where the router gave it a seed of its own, it must equal an unbroken one
with that seed; else it must be a fair one: its form, counts and usage right, and its ids spelling its text. Where
engines differ from each other, or from themselves, with nothing broken, that is theirs, and counted apart.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx
import msgspec

from router.core.asked import cut_for
from router.core.asked import read as read_asked
from tests.vllm.answers import Ended, difference, read, unfair
from tests.vllm.cutter import Leg
from tests.vllm.house import House
from tests.vllm.kinds import Kind
from tests.vllm.servers import VllmServer, tiny_model

AS_IT_SHOULD_BE = ("exact", "fair", "unsteady engine", "exact but for a lost usage")
"""The last where the break took the usage event alone, and no ids are there to count: router/core/RESUME.md, limits."""


@dataclass
class Row:
    """What became of one kind."""

    kind: str
    verdicts: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """A sentence for each that was not as it should be."""

    @property
    def tried(self) -> int:
        return sum(self.verdicts.values())

    @property
    def exact(self) -> int:
        return self.verdicts["exact"]


class Asking:
    """Asks engines and the router, and reads whole answers."""

    def __init__(self, client: httpx.AsyncClient, house: House) -> None:
        self._client = client
        self._house = house
        self.seen: dict[str, int] = {}
        """Events so far of each answer under way, by request id."""

    async def direct(self, engine: VllmServer, path: str, body: bytes) -> bytes:
        answer = await self._client.post(f"{engine.url}{path}", content=body)
        if answer.status_code != httpx.codes.OK:
            raise RuntimeError(f"the engine refused: {answer.text}")
        return answer.content

    async def routed(self, request_id: str, kind: Kind) -> bytes:
        """All that came, however it ended."""
        headers = {"authorization": f"Bearer {self._house.key}", "x-request-id": request_id}
        url = f"{self._house.router_url}{kind.endpoint}"
        got = bytearray()
        self.seen[request_id] = 0
        with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
            async with self._client.stream("POST", url, content=encoded(kind), headers=headers) as answer:
                async for piece in answer.aiter_raw():
                    got += piece
                    self.seen[request_id] += piece.count(b"\n\n")
        del self.seen[request_id]
        return bytes(got)

    async def spell(self, engine: VllmServer, ids: Sequence[int]) -> str:
        answer = await self._client.post(f"{engine.url}/detokenize", json={"model": "tiny", "tokens": list(ids)})
        return str(answer.json()["prompt"])


@dataclass
class Reference:
    """What the engines say when nothing breaks."""

    kind: Kind
    answer: dict[str, Any]
    events: int
    steady: bool


class Trial:
    """Judges the answers that clients got."""

    def __init__(self, asking: Asking, engines: Sequence[VllmServer]) -> None:
        self.asking = asking
        self.engines = engines
        """Those that can be asked now."""
        self.rows: dict[str, Row] = {}

    async def reference(self, kind: Kind) -> Reference:
        """As a client without a router would have it; the events are those of the answer that the router will see."""
        streams = [await self.asking.direct(engine, kind.endpoint, encoded(kind)) for engine in self.engines]
        first, *others = [whole(stream) for stream in streams]
        steady = kind.by_chance or not any(difference(first, other) for other in others)
        return Reference(kind, first, max(stream.count(b"\n\n") for stream in streams), steady)

    async def judge(self, reference: Reference, stream: bytes, story: str, legs: Sequence[Leg] = ()) -> None:
        """`legs` are what engines were asked, where that is known."""
        row = self.rows.setdefault(reference.kind.name, Row(reference.kind.name))
        row.ways.update(ways(reference.kind, legs))
        verdict, detail = await self._verdict(reference, legs[0] if legs else None, stream)
        row.verdicts[verdict] += 1
        if verdict not in AS_IT_SHOULD_BE:
            row.wrong.append(f"{reference.kind.name}, {story}: {verdict}: {detail}")

    async def _verdict(self, reference: Reference, first: Leg | None, stream: bytes) -> tuple[str, str]:
        got = read(stream)
        if isinstance(got, Ended):
            return got.how, got.detail
        if not reference.kind.by_chance:
            wrong = difference(reference.answer, got)
            if wrong and not (reference.steady and await self._steady(reference)):
                return "unsteady engine", wrong
            if reference.kind.fields.get("echo") and not difference(reference.answer | {"usage": []}, got):
                return "exact but for a lost usage", wrong
            return ("differs", wrong) if wrong else ("exact", "")
        if first is not None and msgspec.json.decode(first.body).get("seed") is not None:
            wrong = difference(await self._unbroken(first, reference.kind), got)
            return ("differs", f"from an unbroken one with the same seed: {wrong}") if wrong else ("exact", "")
        wrong = unfair(got, reference.answer) or await self._misspelt(got)
        return ("unfair", wrong) if wrong else ("fair", "")

    async def _steady(self, reference: Reference) -> bool:
        """Whether the engines still say what they said, when nothing breaks and others are at work."""
        kind = reference.kind
        again = [await self.asking.direct(engine, kind.endpoint, encoded(kind)) for engine in self.engines]
        return not any(difference(reference.answer, whole(stream)) for stream in again)

    async def _unbroken(self, first: Leg, kind: Kind) -> dict[str, Any]:
        """What the router asked for in the first leg, without a break, and without what only the router asked for."""
        stream = await self.asking.direct(self.engines[0], first.path, first.body)
        return whole(cut_for(read_asked(kind.endpoint, encoded(kind)), token_ids=True).any(stream))

    async def _misspelt(self, answer: dict[str, Any]) -> str:
        """Ids that do not spell the text: a token lost, or said twice."""
        for choice in answer["choices"].values():
            text = "".join(choice["text"].values())
            shown = [token for token in choice["ids"] if token not in special_tokens()]
            spelled = await self.asking.spell(self.engines[0], shown) if choice["ids"] else text
            if spelled.lstrip(" ").rstrip("\ufffd") != text.lstrip(" ").rstrip("\ufffd"):
                return f"the ids spell {spelled!r}, the text is {text!r}"
        return ""


@cache
def special_tokens() -> frozenset[int]:
    """Those that no text shows."""
    added = msgspec.json.decode((tiny_model() / "tokenizer.json").read_bytes())["added_tokens"]
    return frozenset(token["id"] for token in added if token["special"])


def encoded(kind: Kind) -> bytes:
    return msgspec.json.encode(kind.request())


def whole(stream: bytes) -> dict[str, Any]:
    answer = read(stream)
    if isinstance(answer, Ended):
        raise RuntimeError(f"an unbroken answer ended with {answer}")
    return answer


def ways(kind: Kind, legs: Sequence[Leg]) -> Iterator[str]:
    """How each leg after the first went on."""
    for leg in legs[1:]:
        yield "replay" if (leg.path, leg.body) == (kind.endpoint, legs[0].body) else "ids"

"""One stream across its legs: what the client has of it, and how it goes on when an engine breaks.

The pure parts decide (core/continuation.py) and join (core/splice.py). Here they meet the relay: events are kept as
they came and folded in batches: a healthy stream pays for an append per event, and a broken one has all it needs.
"""

from __future__ import annotations

from router.core.asked import Asked, cut_for, prepare
from router.core.continuation import Plan, plan, settle, unsettled
from router.core.events import DONE
from router.core.splice import Splice, closing
from router.core.transcript import Transcript
from router.core.usage import Usage, charged

FOLD_BLOCKS = 32
"""Raw events kept before they are folded: about 10 kB a stream."""


class Story:
    """What was delivered of one streamed answer."""

    def __init__(self, asked: Asked, *, token_ids: bool, seed: int | None) -> None:
        self.asked = asked
        self.token_ids = token_ids
        self.seeded = seed is not None and asked.seed is None
        self.sent = prepare(asked, token_ids=token_ids, seed=seed)
        """Body of the first attempt."""
        self.transcript = Transcript(asked)
        self.cut = cut_for(asked, token_ids=token_ids)
        self._kept: list[bytes] = []

    def keep(self, block: bytes) -> None:
        """Delivered events, before the cut."""
        self._kept.append(block)
        if len(self._kept) >= FOLD_BLOCKS:
            self.fold()

    def fold(self) -> Transcript:
        if self._kept:
            self.transcript.fold(self._kept)
            self._kept = []
        return self.transcript

    def first_leg(self) -> FirstLeg:
        return FirstLeg(self)

    def plan(self, *, ids_supported: bool) -> Plan:
        transcript = self.fold()
        supported = ids_supported and self.token_ids
        return plan(self.asked, transcript, sent=self.sent, seeded=self.seeded, ids_supported=supported)

    def unsettled(self, held: int) -> dict[int, list[int]]:
        """Ids of which only an engine can say whether their text was delivered whole, by choice."""
        return unsettled(self.fold(), held)

    def settle(self, spelled: dict[int, str], held: int) -> None:
        settle(self.transcript, spelled, held)

    def next_leg(self, plan: Plan) -> SplicedLeg:
        return SplicedLeg(self, Splice(plan, self.fold(), self.asked))

    def close(self, tail: bytes) -> bytes:
        """The last bytes of an answer whose choices have all ended, also where the engine lost its own `[DONE]`."""
        if tail.endswith(DONE):
            return tail
        return tail + self.cut.any(closing(self.fold()))

    def charged(self, *, prompt_estimate: int) -> Usage:
        return charged(self.fold(), prompt_estimate=prompt_estimate)


class FirstLeg:
    """The client gets what the engine sends, less what only we asked for."""

    __slots__ = ("_keep", "_quick", "_story")

    def __init__(self, story: Story) -> None:
        self._story = story
        self._keep = story.keep
        # An event of several choices must be looked at closely: one may end while another goes on.
        self._quick = story.cut.quick if story.asked.choices == 1 else None

    def quick(self, block: bytes) -> bytes | None:
        if self._quick is None:
            return None
        out = self._quick(block)
        if out is not None:
            self._keep(block)
        return out

    def any(self, block: bytes) -> bytes:
        self._keep(block)
        return self._story.cut.any(block)

    def cost(self) -> Usage | None:
        """The engine's own report says it."""
        return None


class SplicedLeg:
    """The client gets what it does not have yet, in the first engine's words."""

    __slots__ = ("_splice", "_story")

    def __init__(self, story: Story, splice: Splice) -> None:
        self._story = story
        self._splice = splice

    def quick(self, block: bytes) -> bytes | None:
        return None

    def any(self, block: bytes) -> bytes:
        new = self._splice.feed(block)
        if not new:
            return b""
        self._story.keep(new)
        return self._story.cut.any(new)

    def cost(self) -> Usage | None:
        """What this leg cost its engine, repeated tokens included."""
        return self._splice.cost()


class WholeLeg:
    """Nothing streamed: the answer passes as one body."""

    def quick(self, block: bytes) -> bytes | None:
        return None

    def any(self, block: bytes) -> bytes:
        return block

    def cost(self) -> Usage | None:
        return None

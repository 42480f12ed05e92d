"""One stream across its legs: what the client has of it, and how it goes on when an engine breaks.

The pure parts decide (core/continuation.py) and join (core/splice.py). Here they meet the relay: usual events are kept
as their text and id (core/run.py), others as they came and folded in batches, and a broken stream has all it needs.
"""

from __future__ import annotations

import re

from router.core.asked import Asked, cut_for, prepare
from router.core.continuation import Plan, Way, plan
from router.core.events import DONE
from router.core.run import Run, nothing_usual
from router.core.spelling import unsettled
from router.core.splice import Splice, closing
from router.core.transcript import Choice, Transcript
from router.core.usage import Usage, charged

THOUGHTS = frozenset({"reasoning", "reasoning_content"})
"""Channels of a chat's thoughts: vLLM's word, and that of its older versions and of others."""
_A_THOUGHT = re.compile(rb'"reasoning(?:_content)?":"')
FOLD_BYTES = 4096
"""Of unusual events kept before they are folded."""


class Story:
    """What was delivered of one streamed answer."""

    __slots__ = (
        "_kept",
        "_kept_bytes",
        "_seed",
        "asked",
        "cut",
        "rehearsed",
        "run",
        "seeded",
        "spells",
        "token_ids",
        "transcript",
    )

    def __init__(self, asked: Asked, *, token_ids: bool, seed: int | None) -> None:
        self.asked = asked
        self.token_ids = token_ids
        self.seeded = seed is not None and asked.seed is None
        self._seed = seed
        self.transcript = Transcript(asked)
        self.cut = cut_for(asked, token_ids=token_ids)
        self.run = Run(cut_ids=self.cut.ids)
        """Usual events, delivered after all that is kept otherwise."""
        self.rehearsed = False
        """Whether an engine was asked to spell its bundles while it ran (spelling.py)."""
        self.spells = False
        """Whether that settled them: then it will again, when the stream is to go on."""
        self._kept: list[bytes] = []
        self._kept_bytes = 0

    def sent(self) -> bytes:
        """Body of the first attempt, made anew each time: a stream that does not break needs it once."""
        return prepare(self.asked, token_ids=self.token_ids, seed=self._seed)

    def keep(self, block: bytes) -> None:
        """Other delivered events, before the cut."""
        if self.run.count or self._kept_bytes > FOLD_BYTES:
            self.fold()
        self._kept.append(block)
        self._kept_bytes += len(block)

    def fold(self) -> Transcript:
        if self._kept:
            self.transcript.fold(self._kept)
            self._kept, self._kept_bytes = [], 0
        if self.run.count:
            self.transcript.take_run(self.run)
        return self.transcript

    def first_leg(self) -> FirstLeg:
        return FirstLeg(self)

    def plan(self, *, ids_supported: bool, settled: bool = False) -> Plan:
        transcript = self.fold()
        supported = ids_supported and self.token_ids
        return plan(
            self.asked, transcript, sent=self.sent(), seeded=self.seeded, ids_supported=supported, settled=settled
        )

    def can_go_on(self, *, settled: bool = False) -> bool:
        """Whether another engine could continue it now; with `settled`, once its bundles are spelled."""
        return self.plan(ids_supported=True, settled=settled).way in (Way.IDS, Way.REPLAY)

    def unsettled(self) -> list[Choice]:
        """Choices of which only an engine can say whether their text was delivered whole (core/spelling.py)."""
        return unsettled(self.fold())

    def next_leg(self, plan: Plan) -> SplicedLeg:
        return SplicedLeg(self, Splice(plan, self.fold(), self.asked))

    def close(self, tail: bytes) -> bytes:
        """The last bytes of an answer whose choices have all ended, also where the engine lost its own `[DONE]`."""
        if tail.endswith(DONE):
            return tail
        return tail + self.cut.any(closing(self.fold()))

    @property
    def thought(self) -> bool:
        """Whether some of what was delivered came as thoughts, in a channel of their own. Nothing is decoded for it."""
        told = {channel for choice in self.transcript.choices.values() for channel in choice.channels}
        if self.run.channel in THOUGHTS or not told.isdisjoint(THOUGHTS):
            return True
        return any(_A_THOUGHT.search(block) for block in self._kept)

    def charged(self, *, prompt_estimate: int) -> Usage:
        return charged(self.fold(), prompt_estimate=prompt_estimate)


class FirstLeg:
    """The client gets what the engine sends, less what only we asked for."""

    __slots__ = ("_quick", "_story", "take")

    def __init__(self, story: Story) -> None:
        # An event of several choices must be looked at closely: one may end while another goes on.
        single = story.asked.choices == 1
        self.take = story.run.take if single else nothing_usual
        self._story = story
        self._quick = story.cut.quick if single else nothing_usual

    @property
    def taken(self) -> int:
        return self._story.run.taken

    def quick(self, block: bytes) -> bytes | None:
        out = self._quick(block)
        if out is not None:
            self._story.keep(block)
            self._story.run.learn(block)
        return out

    def any(self, block: bytes) -> bytes:
        self._story.keep(block)
        return self._story.cut.any(block)

    def pack(self) -> None:
        self._story.run.pack()

    def cost(self) -> Usage | None:
        """The engine's own report says it."""
        return None


class SplicedLeg:
    """The client gets what it does not have yet, in the first engine's words."""

    __slots__ = ("_splice", "_story", "take")

    taken = 0

    def __init__(self, story: Story, splice: Splice) -> None:
        self.take = nothing_usual
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

    def pack(self) -> None:
        """What is unusual is folded as it comes (Story.keep)."""

    def cost(self) -> Usage | None:
        """What this leg cost its engine, repeated tokens included."""
        return self._splice.cost()


class WholeLeg:
    """Nothing streamed: the answer passes as one body."""

    __slots__ = ()

    taken = 0

    def take(self, data: bytes, skip: int = 0, /) -> bytes | None:
        return None

    def quick(self, block: bytes) -> bytes | None:
        return None

    def any(self, block: bytes) -> bytes:
        return block

    def pack(self) -> None: ...

    def cost(self) -> Usage | None:
        return None

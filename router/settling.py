"""Asks engines what was delivered of tokens that came in bundles, so that a stream can go on by its ids.

Why and how: core/spelling.py. Done for a stream that broke; and rehearsed for one that has not, before it is cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import copy
from functools import partial

from router.core.spelling import settle
from router.core.transcript import Choice
from router.fleet.view import View
from router.resume import Story
from router.upstream.spell import Speller
from wire.records import Replica


class Settling:
    def __init__(self, *, view: Callable[[], View], speller: Speller) -> None:
        self._view = view
        self._speller = speller
        self._rehearsals: set[asyncio.Task[None]] = set()
        """Held, so that they are not collected."""

    async def settle(self, story: Story, replica: Replica) -> None:
        """Before a broken stream goes on at `replica`: it can tell, or another one."""
        if choices := story.unsettled():
            await self._ask(story, choices, [replica, *self._beside(replica)])

    def movable(self, story: Story, replica: Replica) -> bool:
        """Whether a stream that has not broken can leave `replica`. One whose tokens come in bundles is not cut before
        an engine has shown that it can spell them: asked once, and told when next this is asked."""
        if story.can_go_on(settled=story.spells):
            return True
        if not story.rehearsed and story.can_go_on(settled=True):
            story.rehearsed = True
            task = asyncio.get_running_loop().create_task(self._rehearse(story, replica))
            self._rehearsals.add(task)
            task.add_done_callback(self._rehearsals.discard)
        return False

    async def _rehearse(self, story: Story, replica: Replica) -> None:
        choices = [copy(choice) for choice in story.unsettled()]  # the stream goes on meanwhile
        marks = [choice.mark for choice in choices]
        await self._ask(story, choices, [*self._beside(replica), replica])
        story.spells = all(choice.mark is not mark for choice, mark in zip(choices, marks, strict=True))

    async def _ask(self, story: Story, choices: list[Choice], replicas: list[Replica]) -> None:
        spell = partial(self._speller.spell, replicas, story.asked.params.model or "")
        for choice in choices:
            await settle(choice, spell)

    def _beside(self, replica: Replica) -> list[Replica]:
        """At most one other replica of its model."""
        others = (r for r in self._view().fleet.replicas.values() if r.model == replica.model)
        return [other for other in others if other.replica != replica.replica][:1]

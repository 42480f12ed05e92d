"""Up to which of its last tokens a stream's text was delivered, where the engine bundled them.

An engine holds back the text of a character that is not finished. Of an event with one id and text we know that nothing
is held back (`Choice.mark`); of one with several ids we do not, and vLLM bundles whatever it has when it is busy, or
by `--stream-interval`. Another engine can spell the ids (`/detokenize`), and what it spells is compared with what was
delivered. Only a text that ends within a character may be held back, so the end alone decides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from router.core.transcript import Choice, Transcript

HELD_IDS = 8
"""A character has at most four tokens; a model that writes bytes at random has more of them held back."""
WINDOW_IDS = 4
"""Whole characters are found in the text of so many tokens."""
HALF = "\ufffd"
"""Stands for bytes that are no character, or not yet."""

Spell = Callable[[list[int]], Awaitable[str | None]]
"""The text of ids; None when nobody can tell."""


def unsettled(transcript: Transcript) -> list[Choice]:
    """The choices that go on and of whose text nobody knows whether the last of it is held back."""
    return [
        choice
        for choice in transcript.choices.values()
        if not choice.finish and len(choice.main) > choice.mark.text and len(choice.ids) > choice.mark.ids
    ]


async def settle(choice: Choice, spell: Spell) -> None:
    """Mark the last id whose text was delivered; leave the choice as it is where that cannot be found out.

    Ids behind the mark were seen by nobody and may be drawn anew, unless their logprobs were counted."""
    mark, delivered = choice.mark.ids, choice.main[choice.mark.text :].decode()
    total = len(choice.ids)
    for end in range(total, max(mark, total - HELD_IDS - 1), -1):
        if end < total and choice.entries:
            return
        # Special tokens are spelled, but were not delivered: a few of the last ids may be free of them.
        for begin in (mark, *range(max(mark + 1, end - WINDOW_IDS), end)):
            text = await spell(choice.ids[begin:end].tolist())
            if text is None:
                return
            if text.endswith(HALF):
                break
            if _told(text, delivered, whole=begin == mark, first=not begin):
                choice.stand(held=total - end)
                return


def _told(text: str, delivered: str, *, whole: bool, first: bool) -> bool:
    """Whether the delivered text has the spelled one at its end. A blank before the very first word is no difference,
    nor is half of a character before the window."""
    if whole:
        return text == delivered or (first and text.lstrip(" ") == delivered.lstrip(" "))
    text = text.lstrip(HALF)
    return bool(text) and delivered.endswith(text)

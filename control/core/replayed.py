"""A router's answer to "what if", in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Example(msgspec.Struct, frozen=True):
    request: str
    model: str
    chosen: str
    instead: str
    chosen_ms: float
    instead_ms: float

    @property
    def difference_ms(self) -> float:
        return self.instead_ms - self.chosen_ms


class Replayed(msgspec.Struct, frozen=True):
    decisions: int
    changed: int
    expected_ms: float
    instead_ms: float
    examples: list[Example]


def in_words(found: Replayed, *, policy: str, constants: Sequence[str]) -> str:
    rule = ", ".join((policy, *constants))
    if not found.decisions:
        return f"no decision that {rule} could have made is remembered; send some requests first"
    share = found.changed / found.decisions
    difference_ms = found.instead_ms - found.expected_ms
    return (
        f"of {found.decisions} decisions remembered, {found.changed} ({share:.1%}) would have gone elsewhere under "
        f"{rule}\n"
        f"expected first token, mean: {found.expected_ms:.1f} ms as decided, {found.instead_ms:.1f} ms then "
        f"({difference_ms:+.1f} ms)\n"
        "each is replayed alone: what it would have changed for the requests after it is not in these figures"
    )

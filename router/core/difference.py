"""The question of `switchyard whatif` and its answer, and several answers as one. Apart from whatif.py because the
workers' parent needs no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

EXAMPLES = 10


class Question(msgspec.Struct, frozen=True, kw_only=True):
    policy: str
    constants: dict[str, float] = {}
    """By name, those of REPLAYED that shall be others."""
    model: str = ""
    """Only decisions about requests for it."""


class Example(msgspec.Struct, frozen=True):
    request: str
    model: str
    chosen: str
    instead: str
    chosen_ms: float
    instead_ms: float


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    decisions: int = 0
    changed: int = 0
    """To another replica that is better by more than a tie."""
    expected_ms: float = 0.0
    """Mean expected time to the first token of the replicas that were chosen, by the constants asked for."""
    instead_ms: float = 0.0
    """The same of those that would have been."""
    examples: list[Example] = []
    """Those with the largest differences first."""


def together(parts: Iterable[Difference]) -> Difference:
    """Of several routers."""
    parts = list(parts)
    decisions = sum(part.decisions for part in parts)

    def mean(of: Callable[[Difference], float]) -> float:
        return sum(of(part) * part.decisions for part in parts) / max(1, decisions)

    return Difference(
        decisions=decisions,
        changed=sum(part.changed for part in parts),
        expected_ms=mean(lambda part: part.expected_ms),
        instead_ms=mean(lambda part: part.instead_ms),
        examples=largest(example for part in parts for example in part.examples),
    )


def largest(examples: Iterable[Example]) -> list[Example]:
    return sorted(examples, key=lambda e: -abs(e.instead_ms - e.chosen_ms))[:EXAMPLES]

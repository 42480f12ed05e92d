"""How long a client is willing to wait, as the headers of its request say.

A client may only be less patient than the model's policy, never more: whoever applies a limit takes the smaller of the
two. What is lost to a client's own impatience says nothing about a replica (attempt.py). Reads and compares; the sweep
looks at the clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf

import msgspec

FIRST_TOKEN = b"x-switchyard-first-token-limit-s"
BETWEEN_TOKENS = b"x-switchyard-between-tokens-limit-s"
TOTAL = b"x-switchyard-total-limit-s"
HEADERS = frozenset({FIRST_TOKEN, BETWEEN_TOKENS, TOTAL})

_SECONDS = re.compile(rb"\d{1,7}(\.\d{1,6})?")
"""Stricter than float(): no sign, no exponent, no nan."""


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """Infinite where the headers say nothing."""

    first_token_until: float = inf
    """Over holding and all attempts: the time the client means is its own, not that of one replica."""
    between_tokens_s: float = inf
    total_until: float = inf


class BadLimit(ValueError):  # noqa: N818 - reads as what it is
    """The value of the header `name` is no time: the client's own error (400)."""

    def __init__(self, name: bytes) -> None:
        self.name = name.decode()
        super().__init__(f"`{self.name}` must be a number of seconds above 0, such as 2.5")


def read(headers: Mapping[bytes, bytes], *, arrived: float) -> Patience:
    """Raise BadLimit for a value that is no number of seconds above 0."""
    return Patience(
        first_token_until=arrived + _seconds(headers, FIRST_TOKEN),
        between_tokens_s=_seconds(headers, BETWEEN_TOKENS),
        total_until=arrived + _seconds(headers, TOTAL),
    )


def _seconds(headers: Mapping[bytes, bytes], name: bytes) -> float:
    value = headers.get(name)
    if value is None:
        return inf
    seconds = float(value) if _SECONDS.fullmatch(value) else 0.0
    if not seconds:
        raise BadLimit(name)
    return seconds

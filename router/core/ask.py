"""A request as the formula sees it; `dispatch.py` makes it of a `Shape`."""

from __future__ import annotations

import msgspec


class Ask(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """What the formula needs to know of a request."""

    prompt_tokens: float
    output_tokens: float
    per_byte: float
    limit_ms: float = 0.0
    """First token wanted within; 0 when nobody said."""
    small: bool = False
    """See score.SMALL_KV."""

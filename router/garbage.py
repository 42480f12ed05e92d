"""The collector of cycles, kept out of the way of tokens.

An open answer is some sixty objects that Python's collector looks at, so with 5,000 of them a full collection takes
0.2 s on a quiet machine and 0.8 s on a busy one, in which no token moves; and by itself it comes whenever their number
has grown by a quarter. Requests leave no cycles behind (tests/router/test_garbage.py), so there is next to nothing to
find: young objects are looked at in small portions, and everything only when few answers would wait for it.
"""

from __future__ import annotations

import gc

YOUNG = 20_000
"""Objects more than there were, until these are looked at, once. Python's 700 would walk several times over the records
that are kept for `why`, which was a twelfth of the cost of a plain request."""
NEVER = 1_000_000_000
QUIET_CALLS = 100
"""With so many open answers a full collection takes some ten milliseconds."""
INTERVAL_S = 60.0
LIMIT_S = 3600.0
"""A router that is never quiet collects all the same, lest something else than requests leaves cycles."""


def keep_out_of_the_way() -> None:
    """For this process, once, when what it imports is there: that is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, NEVER, NEVER)


class Garbage:
    """Decides when everything is looked at. Asked by the sweep."""

    def __init__(self, now: float) -> None:
        self._collected_at = now

    def sweep(self, now: float, *, open_calls: int) -> bool:
        """True when it has collected."""
        since_s = now - self._collected_at
        if since_s < (INTERVAL_S if open_calls <= QUIET_CALLS else LIMIT_S):
            return False
        self._collected_at = now
        gc.collect()
        return True

"""The replicas with the least expected time, roughly, kept up to date in constant time per change.

For models with more replicas than are worth scanning: rows lie in buckets of their own cost, a quarter octave wide,
and the cheapest buckets are read first, from a random place on, so that many routers do not read the same rows.
A rough order is enough, because what is read is scored exactly. Source: routing.md section 2.6 asks for a lazy heap;
buckets cost the same per change and need no repair.
"""

from __future__ import annotations

from math import inf, log2

BUCKETS = 96


def bucket_of(cost_ms: float) -> int:
    if cost_ms == inf:
        return BUCKETS
    if cost_ms <= 1.0:
        return 0
    return min(BUCKETS - 1, int(4.0 * log2(cost_ms)))


class Shortlist:
    __slots__ = ("_at", "_buckets")

    def __init__(self) -> None:
        self._buckets: list[list[int]] = [[] for _ in range(BUCKETS + 1)]
        """The last one holds those that cannot serve."""
        self._at: dict[int, tuple[int, int]] = {}
        """Bucket and place of each row."""

    def put(self, row: int, cost_ms: float) -> None:
        bucket = bucket_of(cost_ms)
        at = self._at.get(row)
        if at is not None:
            if at[0] == bucket:
                return
            self.drop(row)
        rows = self._buckets[bucket]
        self._at[row] = (bucket, len(rows))
        rows.append(row)

    def drop(self, row: int) -> None:
        at = self._at.pop(row, None)
        if at is None:
            return
        rows = self._buckets[at[0]]
        last = rows.pop()
        if last != row:
            rows[at[1]] = last
            self._at[last] = at

    def cheapest(self, count: int, chance: float) -> list[int]:
        """Up to `count` rows that can serve; `chance` in [0, 1) says where in a bucket to begin."""
        found: list[int] = []
        for rows in filter(None, self._buckets[:BUCKETS]):
            size = min(count - len(found), len(rows))
            start = int(chance * len(rows))
            found += rows[start : start + size]
            found += rows[: max(0, start + size - len(rows))]
            if len(found) == count:
                break
        return found

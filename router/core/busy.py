"""Which replicas asked not to be asked again for a while (429 or 503 with Retry-After), and until when.

Belongs to one router: what an engine said to another router it will say to us soon enough. By model, because an engine
may have room for one of its models and not for another. Whether a busy replica is asked all the same, because it is the
only one, decides who asks. Source: RFC 9110 section 10.2.3.
"""

from __future__ import annotations

from collections.abc import Collection

LIMIT_S = 30.0
"""No longer than this, whatever an engine says: a proxy's default of an hour must not cost a replica."""


class Busy:
    def __init__(self) -> None:
        self._until: dict[str, dict[str, float]] = {}
        """By model and replica."""

    def note(self, model: str, replica: str, retry_after_s: float, now: float) -> None:
        """The replica's last word counts, also where it is a shorter time."""
        if retry_after_s > 0.0:
            self._until.setdefault(model, {})[replica] = now + min(LIMIT_S, retry_after_s)

    def replicas(self, model: str, now: float) -> Collection[str]:
        """Not to be asked now. Forgets those whose time is over."""
        if model not in self._until:
            return ()
        left = {replica: until for replica, until in self._until[model].items() if until > now}
        if left:
            self._until[model] = left
        else:
            del self._until[model]
        return left.keys()

    def least_s(self, model: str, now: float) -> float:
        """Until the first of them may be asked again; 0 when none is busy."""
        return min((until - now for until in self._until.get(model, {}).values() if until > now), default=0.0)

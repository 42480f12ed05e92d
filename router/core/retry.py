"""How many retries the router may spend: a share of its traffic plus a floor, so that retries cannot become a storm.

Source: Finagle's and linkerd's retry budget (20 % + 10/s, requests count for 10 s). Ten slots of one second; no timer.
"""

from __future__ import annotations

SLOT_S = 1.0
SLOTS = 10


class RetryBudget:
    """A request deposits `ratio` of a retry, a retry takes one; `floor_per_s` retries are always allowed."""

    def __init__(self, *, ratio: float = 0.2, floor_per_s: float = 10.0) -> None:
        self._ratio = ratio
        self._floor = floor_per_s * SLOT_S * SLOTS
        self._slots = [0.0] * SLOTS
        self._slot = 0
        """Number of the current slot since the clock's zero."""

    def deposit(self, now: float) -> None:
        self._turn(now)
        self._slots[self._slot % SLOTS] += self._ratio

    def withdraw(self, now: float) -> bool:
        """Take one retry if there is one."""
        if self.balance(now) < 1.0:
            return False
        self._slots[self._slot % SLOTS] -= 1.0
        return True

    def balance(self, now: float) -> float:
        """Retries left."""
        self._turn(now)
        return self._floor + sum(self._slots)

    def _turn(self, now: float) -> None:
        """Forget the slots that have passed. A clock that stands still or steps back turns nothing."""
        slot = int(now / SLOT_S)
        if slot == self._slot:
            return
        for passed in range(self._slot + 1, min(slot, self._slot + SLOTS) + 1):
            self._slots[passed % SLOTS] = 0.0
        self._slot = max(self._slot, slot)

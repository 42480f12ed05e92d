"""What routers are told about load, and when: on change, but no two reports closer than 50 ms; without change, each
250 ms, so that silence means that the agent is gone.

`seen` tells a router how many of its own requests the figures already contain, so that it adds only the rest. A count
is confirmed by a scrape only if it arrived a moment before that scrape began: the router counts a request when it
sends it, and an engine shows it a few milliseconds later. Erring on that side counts a request twice for one report;
erring on the other would hide it and let every router pile on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from wire.records import ModelState

SETTLE_S = 0.05
"""From a router's count to the request's place in the engine's figures."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One replica's figures; units and meanings as in node.proto."""

    replica: str
    generation: int = 0
    state: ModelState = ModelState.ABSENT
    load_remaining_s: float = 0.0
    running: int = 0
    waiting: int = 0
    kv_use: float = 0.0
    kv_capacity_tokens: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    idle_s: float = 0.0
    scraped_at: float = 0.0
    """Monotonic time at which the scrape began; sent as an age."""
    adapters: tuple[str, ...] = ()


class Pacing(msgspec.Struct, frozen=True, kw_only=True):
    least_s: float = 0.05
    most_s: float = 0.25

    def due(self, last: float, *, changed: bool) -> float:
        return last + (self.least_s if changed else self.most_s)


class _Count:
    """A router's growing count for one replica, and the part of it that has settled."""

    __slots__ = ("_newest", "_waiting", "_waiting_since", "settled")

    def __init__(self) -> None:
        self._waiting_since = 0.0
        self._start_over()

    def _start_over(self) -> None:
        self.settled = self._newest = 0
        self._waiting: int | None = None

    def told(self, count: int, now: float) -> bool:
        """True if it has grown. A count that fell is a router's new life under an old name: start over."""
        if count < self._newest:
            self._start_over()
        grown = count > self._newest
        self._newest = count
        if grown and self._waiting is None:
            self._waiting, self._waiting_since = count, now
        return grown

    @property
    def waiting(self) -> bool:
        return self._waiting is not None

    def settle(self, now: float) -> int:
        """What a scrape beginning now may confirm. Keeps one count at a time waiting, so it errs low, never high."""
        if self._waiting is not None and now - self._waiting_since >= SETTLE_S:
            self.settled = self._waiting
            self._waiting = None
            if self._newest > self.settled:
                self._waiting, self._waiting_since = self._newest, now
        return self.settled


class SentBook:
    """What each router says it has sent, and how much of it each scrape confirmed."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, _Count]] = {}
        self._seen: dict[str, dict[str, int]] = {}
        self.news = False
        """A scrape has confirmed something that no report has told yet; whoever reports resets it."""

    def told(self, router: str, sent: Mapping[str, int], now: float) -> set[str]:
        """Return the replicas to which the router has sent something new."""
        counts = self._counts.setdefault(router, {})
        return {replica for replica, count in sent.items() if counts.setdefault(replica, _Count()).told(count, now)}

    def forget(self, router: str) -> None:
        self._counts.pop(router, None)
        self._seen.pop(router, None)

    def scrape_begins(self, replica: str, now: float) -> dict[str, int]:
        """What to hand to `scraped` when the scrape has come back."""
        return {r: counts[replica].settle(now) for r, counts in self._counts.items() if replica in counts}

    def scraped(self, replica: str, confirmed: Mapping[str, int]) -> None:
        for router, count in confirmed.items():
            seen = self._seen.setdefault(router, {})
            self.news |= seen.get(replica, 0) != count
            seen[replica] = count

    def unsettled(self, replica: str) -> bool:
        """Is a request on its way that no scrape has confirmed?"""
        return any(counts[replica].waiting for counts in self._counts.values() if replica in counts)

    def seen(self, router: str, replica: str) -> int:
        return self._seen.get(router, {}).get(replica, 0)


def differs(old: Load | None, new: Load) -> bool:
    """Is this news? Clocks that only run on are not; the reports each 250 ms carry them."""
    return (
        old is None
        or msgspec.structs.replace(
            new, idle_s=old.idle_s, scraped_at=old.scraped_at, load_remaining_s=old.load_remaining_s
        )
        != old
    )


def resident(before: Iterable[str], active: Iterable[str], slots: int) -> tuple[str, ...]:
    """LoRA adapters likely in GPU memory: those in use, then the latest used, as many as there are slots."""
    newest = list(active)
    newest += [name for name in before if name not in newest]
    return tuple(newest[: max(slots, 0)])

"""KV memory of one engine: blocks held by sequences, and idle ones that still hold a prefix somebody may ask for.

Pure. A block with a hash can be shared: its hash names all tokens from the start of the prompt to the block's end, so
equal hashes are equal prefixes. Blocks without one are private to a sequence and only counted. Idle blocks are
evicted, least recently released first, when memory is wanted; within one release the end of a prompt goes before
its beginning, as in vLLM, because a prefix without its head is worth nothing.
"""

from __future__ import annotations

from collections.abc import Sequence


class BlockPool:
    """Invariant: held + private + idle <= capacity."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.private = 0
        self.held: dict[int, int] = {}
        """Hash to the number of sequences that hold the block."""
        self.idle: dict[int, None] = {}
        """Oldest release first."""

    @property
    def used(self) -> int:
        return len(self.held) + self.private

    @property
    def free(self) -> int:
        """Blocks that can be had, idle ones included."""
        return self.capacity - self.used

    def match(self, hashes: Sequence[int], limit: int) -> int:
        """How many leading blocks are here, at most `limit`."""
        for i in range(min(limit, len(hashes))):
            if hashes[i] not in self.held and hashes[i] not in self.idle:
                return i
        return min(limit, len(hashes))

    def fits(self, hashes: Sequence[int], private: int) -> bool:
        """Whether holding these present blocks and `private` new ones is possible."""
        return self.used + private + sum(h not in self.held for h in hashes) <= self.capacity

    def hold(self, hashes: Sequence[int]) -> None:
        """Share blocks that `match` found."""
        for h in hashes:
            if h in self.held:
                self.held[h] += 1
            else:
                del self.idle[h]
                self.held[h] = 1

    def take(self, blocks: int) -> bool:
        """Take private blocks, evicting idle ones; False, and nothing taken, when there are not enough."""
        if blocks > self.free:
            return False
        self.private += blocks
        excess = self.used + len(self.idle) - self.capacity
        for _ in range(excess):
            del self.idle[next(iter(self.idle))]
        return True

    def publish(self, hashes: Sequence[int]) -> None:
        """Private blocks are full now and get a name; a copy of a block that is here already is given back."""
        for h in hashes:
            self.private -= 1
            self.idle.pop(h, None)
            self.held[h] = self.held.get(h, 0) + 1

    def release(self, hashes: Sequence[int], private: int) -> None:
        """A sequence is gone: what has a name stays as an idle prefix, the rest is free."""
        self.private -= private
        for h in reversed(hashes):
            count = self.held[h] - 1
            if count:
                self.held[h] = count
            else:
                del self.held[h]
                self.idle[h] = None

    def forget(self) -> None:
        """Drop all idle prefixes (sleep, reset)."""
        self.idle.clear()

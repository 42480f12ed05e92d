"""Which replica probably has how much of a prompt in its prefix cache: an index of our own sends.

Keys are chained hashes of blocks of the canonical prompt bytes, in a key space of this process (Python's keyed hash):
nothing is asked of engines and nothing can be aimed at by a client. A block is known by the set of replicas it was
sent to, kept as one integer with a bit per replica: intersecting the sets along the chain costs one `&` per block.

Forgetting is by generations, not by lists. Every replica owns two bits, a young and an old one. When it was sent half
a cache of new blocks, the young bit becomes the old one and the old one is retired, so that what is believed cached
lies between a half and a whole cache of the most recent blocks. The dictionary forgets in the same way, by turning
young into old, which bounds it in total and gives retired bits back. Forgetting one replica (restart, sleep) is
retiring its bits. Decides nothing. Source: routing.md section 2.6; SGLang's tree is the alternative considered.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

BLOCK_BYTES = 256
EXACT_BLOCKS = 64
DOUBLING_BLOCKS = 32
READ_LIMIT = 256
"""Sets whose rows are kept at hand."""


def _edges(limit: int) -> tuple[int, ...]:
    """Ends of blocks: 256 bytes up to 16 kB, then doubling in size every 32 blocks, so that a megabyte has 256.

    They depend on the position alone: a prompt that grows keeps the keys of its beginning."""
    edges = [BLOCK_BYTES * (i + 1) for i in range(EXACT_BLOCKS)]
    size = BLOCK_BYTES
    while edges[-1] < limit:
        size *= 2
        edges += [edges[-1] + size * (i + 1) for i in range(DOUBLING_BLOCKS)]
    return tuple(edges)


EDGES = _edges(1 << 20)
SLICES = tuple(slice(start, end) for start, end in zip((0, *EDGES), EDGES, strict=False))


def chain(seed: str, prompt: bytes | memoryview) -> list[int]:
    """One key per whole block; equal keys mean equal prompts up to there, for the same seed (the model's name)."""
    size = len(prompt)
    if size < BLOCK_BYTES:
        return []
    if size <= EDGES[EXACT_BLOCKS - 1]:
        prompt = bytes(prompt)  # parts of a view hash at half the speed; longer ones are not copied all the same
    key = hash(seed)
    return [key := hash((key, prompt[part])) for part in SLICES[: _blocks(size)]]


def _blocks(size: int) -> int:
    if size < EDGES[EXACT_BLOCKS - 1]:
        return size // BLOCK_BYTES
    return bisect_right(EDGES, size)


Match = list[tuple[int, int]]
"""(bytes matched, bits of the replicas whose match ends there), growing; bits are this index's business."""


class PrefixIndex:
    """The replicas of one model, by row: small numbers that their owner hands out and keeps while they are added."""

    __slots__ = ("_bits", "_free", "_half", "_live", "_new", "_old", "_read", "_retired", "_rows", "_young")

    def __init__(self) -> None:
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._rows: list[int] = []
        """Row of each bit; that of a retired bit means nothing."""
        self._live = 0
        self._free: list[int] = []
        self._retired: tuple[list[int], list[int]] = ([], [])
        """Bits retired in this turn of the dictionary, and in the one before: after the next no key has them."""
        self._bits: list[tuple[int, int]] = []
        """Young and old bit of each row; bit 0 is nobody's."""
        self._half: dict[int, int] = {}
        """Bytes after which the young bit of a row becomes the old one."""
        self._new: dict[int, int] = {}
        self._read: dict[int, list[int]] = {}
        """Rows of some sets, as long as no bit changes hands."""

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    @property
    def young(self) -> int:
        """Blocks that the next turn keeps."""
        return len(self._young)

    def add(self, row: int, *, capacity_bytes: int) -> None:
        """Start, or start again with nothing: a replica joined, restarted or dropped its cache."""
        self.remove(row)
        while row >= len(self._bits):
            self._bits.append((0, 0))
        self._half[row] = max(BLOCK_BYTES, capacity_bytes // 2)
        self._new[row] = 0
        self._bits[row] = (self._take(row), self._take(row))

    def remove(self, row: int) -> None:
        if self._half.pop(row, None) is not None:
            for bit in self._bits[row]:
                self._retire(bit)
            self._bits[row] = (0, 0)

    def insert(self, row: int, keys: list[int]) -> None:
        """The replica was sent this prompt."""
        if row not in self._half or not keys:
            return
        bit, older = self._bits[row]
        young, old, live = self._young, self._old, self._live
        mask, both = 1 << bit, 1 << bit | 1 << older
        fresh = 0
        seen, joined = -1, 0
        for depth, key in enumerate(keys):
            now = young.get(key)
            if now is None:
                now = old.get(key, 0) & live
            elif now & mask:
                continue
            if not now & both:
                fresh += SLICES[depth].stop - SLICES[depth].start
            if now != seen:  # neighbours in a chain mostly have the same set: let them share one integer
                seen, joined = now, now | mask
            young[key] = joined
        self._new[row] += fresh
        if self._new[row] > self._half[row]:
            self._retire(older)
            self._bits[row] = (self._take(row), bit)
            self._new[row] = 0

    def turn(self) -> None:
        """Forget the older half of all blocks."""
        self._old, self._young = self._young, {}
        self._free += self._retired[1]
        self._retired = ([], self._retired[0])

    def match(self, keys: list[int]) -> Match:
        young, old = self._young, self._old
        left, size = self._live, 0
        found: Match = []
        for key, edge in zip(keys, EDGES, strict=False):
            here = young.get(key)
            if old and (before := old.get(key)) is not None:
                here = before if here is None else here | before
            if here is None:
                break
            if here != left:
                if size and (gone := left & ~here):
                    found.append((size, gone))
                left &= here
                if not left:
                    return found
            size = edge
        if size:
            found.append((size, left))
        return found

    def rows(self, bits: int, limit: int) -> list[int]:
        """Up to `limit` replicas of a set."""
        found: dict[int, None] = {}
        bits &= self._live
        while bits and len(found) < limit:
            bit = bits.bit_length() - 1
            found[self._rows[bit]] = None
            bits ^= 1 << bit
        return list(found)

    def spread(self, match: Match, size: int) -> list[float]:
        """Bytes that each of the first `size` rows has. Sets recur (a system prompt is everywhere), so their rows are
        kept at hand."""
        out = [0.0] * size
        for matched, bits in match:
            rows = self._read.get(bits)
            if rows is None:
                if len(self._read) >= READ_LIMIT:
                    self._read.clear()
                rows = self._read[bits] = self.rows(bits, size)
            for row in rows:
                out[row] = matched
        return out

    def matched(self, match: Match, rows: Iterable[int]) -> list[float]:
        """Bytes that each of some rows has."""
        if not match:
            return [0.0 for _ in rows]
        width = len(self._rows) // 8
        sets = [(float(size), bits.to_bytes(width, "little")) for size, bits in reversed(match)]
        found = []
        for row in rows:
            young, old = self._bits[row]
            for size, bits in sets:
                if bits[young >> 3] >> (young & 7) & 1 or bits[old >> 3] >> (old & 7) & 1:
                    found.append(size)
                    break
            else:
                found.append(0.0)
        return found

    def _take(self, row: int) -> int:
        if not self._free:
            size = len(self._rows)
            self._rows += [0] * max(64, size)
            self._free = list(range(len(self._rows) - 1, max(size, 1) - 1, -1))
        bit = self._free.pop()
        self._rows[bit] = row
        self._live |= 1 << bit
        self._read.clear()
        return bit

    def _retire(self, bit: int) -> None:
        self._live &= ~(1 << bit)
        self._retired[0].append(bit)

"""Which replica probably has how much of a prompt in its prefix cache: an index of our own sends.

Keys are chained hashes of blocks of the canonical prompt bytes, in a key space of this process (Python's keyed hash):
nothing is asked of engines and nothing can be aimed at by a client. A block is known by the set of replicas it was
sent to: a tuple of a few, or a row of bits. Whoever was sent a block was sent those before it, and these are forgotten
later, so the sets along a chain lie in each other and need not be intersected.

Forgetting is by generations, not by lists. Every replica owns two bits, a young and an old one. When it was sent half
a cache of new blocks, the young bit becomes the old one and the old one is retired, so that what is believed cached
lies between a half and a whole cache of the most recent blocks. The dictionary forgets in the same way, by turning
young into old, which bounds it in total and gives retired bits back. Forgetting one replica (restart, sleep) is
retiring its bits. Decides nothing. Source: routing.md section 2.6; SGLang's tree is the alternative considered.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby
from struct import Struct

BLOCK_BYTES = 256
EXACT_BLOCKS = 64
DOUBLING_BLOCKS = 32
FEW = 8
"""Up to so many holders of a block are kept as a tuple, more as a row of bits."""


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
REACH = tuple(float(edge) for edge in EDGES)
"""The same for decisions, which multiply them: a product of two floats is faster than one of an integer and a float."""
SLICES = tuple(slice(start, end) for start, end in zip((0, *EDGES), EDGES, strict=False))
EXACT = tuple(Struct(f"{BLOCK_BYTES}s" * count) for count in range(EXACT_BLOCKS + 1))
"""The parts of a prompt of so many blocks."""


def chain(seed: str, prompt: bytes | memoryview) -> list[int]:
    """One key per whole block; equal keys mean equal prompts up to there, for the same seed (the model's name).

    The prompt may be a msgspec.Raw: bytes by its types, but only a buffer. Typed `bytes` alone, it would be refused
    when this is compiled."""
    size, key = len(prompt), hash(seed)
    if size <= EDGES[EXACT_BLOCKS - 1]:
        # All parts in one call: slices, one by one, cost a fifth more.
        parts = EXACT[size // BLOCK_BYTES].unpack_from(prompt)
        return [key := hash((key, part)) for part in parts]
    view = memoryview(prompt)
    return [key := hash((key, bytes(view[part]))) for part in SLICES[: bisect_right(EDGES, size)]]


class Many:
    """More than a few bits, to be asked for one and to be read from anywhere; never changed once a block has it."""

    __slots__ = ("_members", "bits", "count", "read", "read_at")

    def __init__(self, bits: bytearray, members: list[int]) -> None:
        self.bits = bits
        self.count = len(members)
        """How many are set, those that were retired since included."""
        self._members = members
        """The first `count` of them: sets that grew from this one go on in the same list."""
        self.read: list[int] = []
        self.read_at = -1
        """Rows of them, and how many bits had changed hands when they were read."""

    def some(self, limit: int, chance: float) -> list[int]:
        """Up to `limit` bits, from a random place on."""
        start = int(chance * self.count)
        found = self._members[start : min(start + limit, self.count)]
        return found + self._members[: min(limit - len(found), start)]

    def joined(self, bit: int, width: int) -> Many:
        """With another one that is not in it; `width` is in bytes."""
        members = self._members if len(self._members) == self.count else self._members[: self.count]
        members.append(bit)
        bits = self.bits.ljust(width, b"\0")
        bits[bit >> 3] |= 1 << (bit & 7)
        return Many(bits, members)


Holders = tuple[int, ...] | Many
"""Bits of the replicas that were sent a block, some of them retired."""
Spot = tuple[int, int, int, int]
"""Byte of a row's young bit in a row of bits, and the bit in it; the same of the old one."""
NOWHERE: Spot = (0, 1, 0, 1)
Match = list[tuple[float, Holders]]
"""(bytes matched, who holds as much), growing. Who holds more of a prompt holds less of it too, so each set contains
the next; what a set looks like is this index's business."""


class PrefixIndex:
    """The replicas of one model, by row: small numbers that their owner hands out and keeps while they are added."""

    __slots__ = ("_bits", "_changes", "_free", "_half", "_new", "_old", "_retired", "_rows", "_spots", "_young")

    def __init__(self) -> None:
        self._young: dict[int, Holders] = {}
        self._old: dict[int, Holders] = {}
        """Of a block that is in both, the first knows all holders. Who is sent a block is sent those before it, so of a
        chain the first has a beginning, the second some more, and nobody the rest."""
        self._rows: list[int] = []
        """Row of each bit; -1 when nobody has it, or it was retired."""
        self._changes = 0
        """How often a bit changed hands."""
        self._free: list[int] = []
        self._retired: tuple[list[int], list[int]] = ([], [])
        """Bits retired in this turn of the dictionary, and in the one before: after the next no key has them."""
        self._bits: list[tuple[int, int]] = []
        """Young and old bit of each row; bit 0 is nobody's."""
        self._spots: list[Spot] = []
        self._half: dict[int, int] = {}
        """Bytes after which the young bit of a row becomes the old one."""
        self._new: dict[int, int] = {}

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
            self._spots.append(NOWHERE)
        self._half[row] = max(BLOCK_BYTES, capacity_bytes // 2)
        self._new[row] = 0
        self._own(row, self._take(row), self._take(row))

    def remove(self, row: int) -> None:
        if self._half.pop(row, None) is not None:
            for bit in self._bits[row]:
                self._retire(bit)
            self._own(row, 0, 0)

    def insert(self, row: int, keys: list[int]) -> None:
        """The replica was sent this prompt."""
        if row not in self._half or not keys:
            return
        bit, older = self._bits[row]
        young = self._young
        known = fresh = 0
        for blocks in (young, self._old):
            for holders, run in groupby(keys[known:] if known else keys, blocks.get):
                if holders is None:
                    break
                part = list(run)
                has = _has(holders, bit)
                if not has or blocks is not young:
                    joined = self._joined(holders, bit, clean=blocks is not young)
                    young.update(dict.fromkeys(part, joined))
                if not has and not _has(holders, older):
                    fresh += EDGES[known + len(part) - 1] - (EDGES[known - 1] if known else 0)
                known += len(part)
        if known < len(keys):  # behind a block that nobody has nobody has anything
            young.update(dict.fromkeys(keys[known:], (bit,)))
            fresh += EDGES[len(keys) - 1] - (EDGES[known - 1] if known else 0)
        self._new[row] += fresh
        if self._new[row] > self._half[row]:
            self._retire(older)
            self._own(row, self._take(row), bit)
            self._new[row] = 0

    def turn(self) -> None:
        """Forget the older half of all blocks."""
        self._old, self._young = self._young, {}
        self._free += self._retired[1]
        self._retired = ([], self._retired[0])

    def match(self, keys: list[int]) -> Match:
        found: Match = []
        known = 0
        for blocks in (self._young, self._old):
            for holders, run in groupby(keys[known:] if known else keys, blocks.get):
                if holders is None:
                    break
                known += len(list(run))
                found.append((REACH[known - 1], holders))
            if known == len(keys):
                break
        return found

    def most(self, match: Match, limit: int, *, too_many: float, chance: float) -> tuple[dict[int, float], Match]:
        """Up to `limit` rows that hold most, with their bytes, best first, and what of the match was not read through.
        Of many, those from a random place on (`chance` in [0, 1)); of more than `too_many`, none."""
        out: dict[int, float] = {}
        rows, unread = self._rows, len(match)
        while unread and len(out) < limit:
            size, holders = match[unread - 1]
            bits: Sequence[int]
            if isinstance(holders, tuple):
                bits, all_of_them = holders, True
            elif holders.count <= too_many:
                bits, all_of_them = holders.some(limit, chance), holders.count <= limit
            else:
                break
            for bit in bits:
                row = rows[bit]
                if row >= 0 and row not in out:
                    if len(out) == limit:
                        all_of_them = False
                        break
                    out[row] = size
            if not all_of_them:
                break
            unread -= 1
        return out, match[:unread]

    def spread(self, match: Match, size: int) -> list[float]:
        """Bytes that each of the first `size` rows has."""
        out = [0.0] * size
        for matched, holders in match:
            theirs = self._read(holders)
            if len(theirs) == size and isinstance(holders, Many):
                out = [matched] * size  # all of them: a system prompt
            else:
                for row in theirs:
                    out[row] = matched
        return out

    def matched(self, match: Match, rows: Sequence[int]) -> list[float]:
        """Bytes that each of some rows has."""
        out = [0.0] * len(rows)
        spots, width = [self._spots[row] for row in rows], len(self._rows) >> 3
        for size, holders in match:
            if isinstance(holders, tuple):
                theirs = self._read(holders)
                for place, row in enumerate(rows):
                    if row in theirs:
                        out[place] = size
            else:
                bits = holders.bits if len(holders.bits) == width else holders.bits.ljust(width, b"\0")
                for place, (young, mask, old, other) in enumerate(spots):
                    if bits[young] & mask or bits[old] & other:
                        out[place] = size
        return out

    def _joined(self, holders: Holders, bit: int, *, clean: bool) -> Holders:
        """With one more; `clean`: without retired ones, which others get once all blocks are renewed."""
        rows = self._rows
        if isinstance(holders, Many):
            if not clean and not _has(holders, bit):
                return holders.joined(bit, len(rows) >> 3)
            holders = tuple(holders.some(holders.count, 0.0))
        members = [one for one in holders if rows[one] >= 0 and one != bit]
        members.append(bit)
        if len(members) <= FEW:
            return tuple(members)
        bits = bytearray(len(rows) >> 3)
        for one in members:
            bits[one >> 3] |= 1 << (one & 7)
        return Many(bits, members)

    def _read(self, holders: Holders) -> list[int]:
        """Rows of a set, of a large one each once. That recurs (a system prompt is everywhere), so they are kept."""
        rows = self._rows
        if isinstance(holders, tuple):
            return [rows[bit] for bit in holders if rows[bit] >= 0]
        if holders.read_at != self._changes:
            holders.read = list({rows[bit]: None for bit in holders.some(holders.count, 0.0) if rows[bit] >= 0})
            holders.read_at = self._changes
        return holders.read

    def _own(self, row: int, young: int, old: int) -> None:
        self._bits[row] = (young, old)
        self._spots[row] = (young >> 3, 1 << (young & 7), old >> 3, 1 << (old & 7))

    def _take(self, row: int) -> int:
        if not self._free:
            size = len(self._rows)
            self._rows += [-1] * max(64, size)
            self._free = list(range(len(self._rows) - 1, max(size, 1) - 1, -1))
        bit = self._free.pop()
        self._rows[bit] = row
        self._changes += 1
        return bit

    def _retire(self, bit: int) -> None:
        self._rows[bit] = -1
        self._changes += 1
        self._retired[0].append(bit)


def _has(holders: Holders, bit: int) -> bool:
    if isinstance(holders, tuple):
        return bit in holders
    bits = holders.bits
    return bit >> 3 < len(bits) and bool(bits[bit >> 3] >> (bit & 7) & 1)

"""The law that lets the prefix index do without intersections: whoever holds a block holds all before it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.affinity import BLOCK_BYTES, PrefixIndex, chain

ROWS = 20
PROMPTS = [
    chain("m", b"".join(letter.encode() * BLOCK_BYTES for letter in parts)) for parts in ("aabc", "aabb", "aacd", "b")
]
steps = st.lists(
    st.tuples(st.sampled_from(["insert", "insert", "insert", "turn", "again", "leave"]), st.integers(0, 79)),
    min_size=5,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(steps, st.integers(1, 12), st.floats(0, 1, exclude_max=True))
def test_a_match_is_as_long_as_every_one_of_its_blocks_is_held(
    history: list[tuple[str, int]], capacity_blocks: int, chance: float
) -> None:
    index = PrefixIndex()
    for row in range(ROWS):
        index.add(row, capacity_bytes=capacity_blocks * BLOCK_BYTES)
        index.insert(row, PROMPTS[0])
    for what, number in history:
        row = number % ROWS
        match what:
            case "insert":
                index.insert(row, PROMPTS[number // ROWS])
            case "turn":
                index.turn()
            case "again":
                index.add(row, capacity_bytes=capacity_blocks * BLOCK_BYTES)
            case _:
                index.remove(row)
        for keys in PROMPTS:
            match = index.match(keys)
            held = [index.spread(index.match([key]), ROWS) for key in keys]
            expected = [0.0] * ROWS
            for one in range(ROWS):
                while expected[one] < BLOCK_BYTES * len(keys) and held[int(expected[one]) // BLOCK_BYTES][one]:
                    expected[one] += BLOCK_BYTES
            assert expected == index.spread(match, ROWS)
            assert expected == index.matched(match, range(ROWS))
            most, unread = index.most(match, 999, too_many=999, chance=chance)
            assert {one: size for one, size in enumerate(expected) if size} == most
            assert [] == unread

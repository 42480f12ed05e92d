from __future__ import annotations

from router.core.affinity import EDGES, FEW, PrefixIndex, chain

WHOLE = 1 << 40


def matched(index: PrefixIndex, keys: list[int], rows: int) -> list[float]:
    """By both ways of asking, which must agree."""
    match = index.match(keys)
    out = index.spread(match, rows)
    assert out == index.matched(match, range(rows))
    return out


def test_prompts_share_keys_up_to_their_first_difference() -> None:
    one = chain("m", b"a" * 1024 + b"b" * 1024)
    other = chain("m", b"a" * 1024 + b"c" * 1024)
    assert one[:4] == other[:4]
    assert not set(one[4:]) & set(other[4:])


def test_a_growing_prompt_keeps_the_keys_of_its_beginning() -> None:
    text = bytes(range(256)) * 512
    for size in (0, 255, 256, 16_383, 16_384, 16_385, 40_000, 131_072):
        assert chain("m", text)[: len(chain("m", text[:size]))] == chain("m", text[:size])


def test_long_prompts_have_few_keys() -> None:
    assert 256 == len(chain("m", bytes(1 << 20)))
    assert 256 == len(chain("m", bytes(3 << 20)))


def test_models_share_no_keys() -> None:
    assert not set(chain("m", b"a" * 512)) & set(chain("n", b"a" * 512))


def test_a_replica_matches_what_it_was_sent() -> None:
    index = PrefixIndex()
    for row in range(3):
        index.add(row, capacity_bytes=WHOLE)
    index.insert(0, chain("m", b"a" * 2048))
    index.insert(1, chain("m", b"a" * 1024 + b"b" * 1024))
    assert [2048.0, 1024.0, 0.0] == matched(index, chain("m", b"a" * 2048), 3)
    assert [0.0, 0.0, 0.0] == matched(index, chain("m", b"z" * 2048), 3)
    assert [] == index.match([])


def test_many_replicas_with_one_prefix_are_all_found() -> None:
    index = PrefixIndex()
    for row in range(100):
        index.add(row, capacity_bytes=WHOLE)
        index.insert(row, chain("m", b"s" * 512 + bytes([row]) * 512))
    expected = [512.0] * 100
    expected[7] = 1024.0
    assert expected == matched(index, chain("m", b"s" * 512 + bytes([7]) * 512), 100)


def test_who_holds_most_comes_first_and_of_many_some_from_a_random_place_on() -> None:
    index = PrefixIndex()
    for row in range(100):
        index.add(row, capacity_bytes=WHOLE)
        index.insert(row, chain("m", b"s" * 512 + bytes([row]) * 512))
    match = index.match(chain("m", b"s" * 512 + bytes([7]) * 512))
    some, unread = index.most(match, 4, too_many=1000, chance=0.0)
    assert match[:1] == unread
    assert [1024, 512, 512, 512] == list(some.values())
    assert 7 == next(iter(some))
    assert some.keys() != index.most(match, 4, too_many=1000, chance=0.5)[0].keys()
    every, unread = index.most(match, 200, too_many=1000, chance=0.9)
    assert (set(range(100)), []) == (set(every), unread)
    assert ({7: 1024}, match[:1]) == index.most(match, 4, too_many=99, chance=0.0)


def test_replicas_that_left_are_not_among_those_that_hold_most() -> None:
    index = PrefixIndex()
    keys = chain("m", b"s" * 512)
    for row in range(2 * FEW):
        index.add(row, capacity_bytes=WHOLE)
        index.insert(row, keys)
        assert set(range(row + 1)) == index.most(index.match(keys), 99, too_many=99, chance=0.5)[0].keys()
    for row in range(2 * FEW):
        index.remove(row)
        assert set(range(row + 1, 2 * FEW)) == index.most(index.match(keys), 99, too_many=99, chance=0.5)[0].keys()


def test_sets_read_once_follow_the_replicas_that_come_and_go() -> None:
    index = PrefixIndex()
    keys = chain("m", b"s" * 512)
    for row in range(2 * FEW):
        index.add(row, capacity_bytes=WHOLE)
        index.insert(row, keys)
    assert [512.0] * 2 * FEW == matched(index, keys, 2 * FEW)
    assert [512.0] * 2 * FEW == matched(index, keys, 2 * FEW)
    index.remove(3)
    assert 0.0 == matched(index, keys, 2 * FEW)[3]
    index.add(3, capacity_bytes=WHOLE)
    assert 0.0 == matched(index, keys, 2 * FEW)[3]


def test_retired_bits_are_given_to_others_only_when_no_block_has_them() -> None:
    index = PrefixIndex()
    keys = chain("m", b"s" * 512)
    for row in range(2 * FEW):
        index.add(row, capacity_bytes=WHOLE)
        index.insert(row, keys)
    few = chain("m", b"f" * 512)
    index.insert(0, few)
    for other in range(30):
        index.add(0, capacity_bytes=WHOLE)  # started anew: it holds nothing
        index.turn()
        index.insert(1, keys)
        index.insert(1 + other % 2, few)
        assert 0.0 == matched(index, keys, 2 * FEW)[0]
        assert 0.0 == matched(index, few, 2 * FEW)[0]
    assert 64 >= len(index._rows)


def test_sets_from_before_there_were_more_rows_are_asked_for_later_rows() -> None:
    index = PrefixIndex()
    keys = chain("m", b"s" * 512)
    for row in range(2 * FEW):
        index.add(row, capacity_bytes=WHOLE)
        index.insert(row, keys)
    for row in range(2 * FEW, 200):
        index.add(row, capacity_bytes=WHOLE)
    assert 0.0 == matched(index, keys, 200)[199]
    index.insert(199, keys)
    assert 512.0 == matched(index, keys, 200)[199]


def test_a_removed_replica_has_nothing_and_takes_nothing() -> None:
    index = PrefixIndex()
    index.add(0, capacity_bytes=WHOLE)
    index.insert(0, chain("m", b"a" * 512))
    index.remove(0)
    index.remove(0)
    index.insert(0, chain("m", b"a" * 512))
    assert [0.0] == matched(index, chain("m", b"a" * 512), 1)
    index.add(0, capacity_bytes=WHOLE)
    assert [0.0] == matched(index, chain("m", b"a" * 512), 1)


def test_a_full_cache_forgets_the_oldest_prompts_first() -> None:
    index = PrefixIndex()
    index.add(0, capacity_bytes=8 * 256)
    prompts = [chain("m", bytes([n]) * 1024) for n in range(4)]
    for keys in prompts:
        index.insert(0, keys)
    assert [0.0] == matched(index, prompts[0], 1)
    assert [1024.0] == matched(index, prompts[3], 1)


def test_what_is_used_again_is_not_forgotten() -> None:
    index = PrefixIndex()
    index.add(0, capacity_bytes=8 * 256)
    kept = chain("m", b"k" * 256)
    for n in range(40):
        index.insert(0, chain("m", bytes([n]) * 512))
        index.insert(0, kept)
        assert [256.0] == matched(index, kept, 1)


def test_turning_twice_forgets_what_was_not_used_and_gives_bits_back() -> None:
    index = PrefixIndex()
    index.add(0, capacity_bytes=512)
    old, kept = chain("m", b"o" * 512), chain("m", b"k" * 512)
    index.insert(0, old)
    for _ in range(50):
        index.turn()
        assert [512.0] == matched(index, kept, 1) or index.young == 0
        index.insert(0, kept)
        index.insert(0, kept)
    assert [0.0] == matched(index, old, 1)
    assert 4 == len(index)
    assert 64 == len(index._rows)


def test_blocks_that_are_young_in_part_match_as_a_whole() -> None:
    index = PrefixIndex()
    index.add(0, capacity_bytes=WHOLE)
    long = chain("m", b"a" * 2048)
    index.insert(0, long)
    index.turn()
    index.insert(0, long[:4])
    assert [2048.0] == matched(index, long, 1)
    assert 8 + 4 == len(index)


def test_more_rows_than_at_first_are_kept_apart() -> None:
    index = PrefixIndex()
    for row in (40, 5):
        index.add(row, capacity_bytes=WHOLE)
    index.insert(40, chain("m", b"a" * 256))
    assert 256.0 == matched(index, chain("m", b"a" * 256), 41)[40]
    assert EDGES[0] == 256

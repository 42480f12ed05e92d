from __future__ import annotations

import random
from math import inf

from router.core.shortlist import BUCKETS, Shortlist, bucket_of


def test_the_cheapest_come_first() -> None:
    shortlist = Shortlist()
    for row in range(100):
        shortlist.put(row, 10.0 * 2.0 ** (row % 10))
    assert {0, 10, 20, 30, 40, 50, 60, 70, 80, 90} == set(shortlist.cheapest(10, 0.5))
    assert 15 == len(set(shortlist.cheapest(15, 0.99)))
    assert 100 == len(set(shortlist.cheapest(1000, 0.3)))


def test_rows_that_cannot_serve_are_not_listed() -> None:
    shortlist = Shortlist()
    shortlist.put(1, inf)
    assert [] == list(shortlist.cheapest(5, 0.0))
    shortlist.put(1, 3.0)
    assert [1] == list(shortlist.cheapest(5, 0.0))
    shortlist.drop(1)
    shortlist.drop(1)
    assert [] == list(shortlist.cheapest(5, 0.0))


def test_a_different_chance_begins_elsewhere_among_equals() -> None:
    shortlist = Shortlist()
    for row in range(100):
        shortlist.put(row, 50.0)
    assert set(shortlist.cheapest(10, 0.0)) != set(shortlist.cheapest(10, 0.5))
    assert 10 == len(set(shortlist.cheapest(10, 0.99)))


def test_any_history_keeps_every_row_exactly_once() -> None:
    rng = random.Random(4)
    shortlist = Shortlist()
    alive: dict[int, float] = {}
    for _ in range(3000):
        row = rng.randrange(60)
        if rng.random() < 0.2:
            shortlist.drop(row)
            alive.pop(row, None)
        else:
            alive[row] = rng.choice([1.0, 7.0, 300.0, 1e5])
            shortlist.put(row, alive[row])
    listed = list(shortlist.cheapest(1000, rng.random()))
    assert sorted(alive) == sorted(listed)
    assert sorted(alive.values()) == [alive[row] for row in listed]


def test_costs_beyond_the_last_bucket_share_it() -> None:
    assert BUCKETS - 1 == bucket_of(1e30)
    assert 0 == bucket_of(0.0)

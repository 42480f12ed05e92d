"""The store decides as etcd does; time and lease ids are given to it."""

from __future__ import annotations

import operator

import pytest

from wire.store import (
    ALL,
    Compacted,
    Comparison,
    Delete,
    DuplicateKey,
    FutureRevision,
    KeyNotFound,
    Kv,
    LeaseExists,
    LeaseNotFound,
    Put,
    Range,
    Store,
    Watcher,
    at_revision,
    covers,
    prefix_end,
)


def put(store: Store, key: bytes, value: bytes = b"x", *, lease: int = 0) -> int:
    store.apply([Put(key, value, lease)])
    return store.revision


def keys(store: Store, key: bytes = b"", end: bytes = ALL, *, revision: int = 0) -> list[bytes]:
    return [kv.key for kv in store.range(Range(key, end, revision=revision)).kvs]


def watch(store: Store, *, revision: int = 0, key: bytes = b"", end: bytes = ALL) -> tuple[Watcher, list[None]]:
    """A watcher and its wake-ups."""
    wakes: list[None] = []
    return store.watch(key, end, revision=revision, wake=lambda: wakes.append(None)), wakes


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a/", b"a0"), (b"a\xff", b"b"), (b"a\xff\xff", b"b"), (b"\xff", ALL), (b"", ALL)],
)
def test_a_prefix_ends_before_the_first_key_that_does_not_begin_with_it(prefix: bytes, end: bytes) -> None:
    assert end == prefix_end(prefix)


def test_a_range_without_end_is_one_key() -> None:
    assert covers(b"a", b"", b"a")
    assert not covers(b"a", b"", b"ab")
    assert covers(b"a", ALL, b"z")


def test_a_put_counts_versions_and_keeps_the_revision_of_creation() -> None:
    store = Store()
    first = put(store, b"a", b"1")
    second = put(store, b"a", b"2")
    assert (Kv(b"a", b"2", first, second, 2, 0),) == store.range(Range(b"a")).kvs


def test_a_key_put_again_after_deletion_begins_at_version_one() -> None:
    store = Store()
    put(store, b"a")
    store.apply([Delete(b"a")])
    put(store, b"a")
    assert 1 == store.range(Range(b"a")).kvs[0].version


def test_a_transaction_has_one_revision_and_nothing_of_it_happens_when_a_part_is_wrong() -> None:
    store = Store()
    store.apply([Put(b"a"), Put(b"b"), Delete(b"absent")])
    assert [2, 2] == [kv.mod_revision for kv in store.range(Range(b"", ALL)).kvs]
    with pytest.raises(LeaseNotFound):
        store.apply([Delete(b"a"), Put(b"c", lease=7)])
    with pytest.raises(DuplicateKey):
        store.apply([Put(b"c"), Put(b"c")])
    assert (2, [b"a", b"b"]) == (store.revision, keys(store))


def test_reading_and_deleting_nothing_make_no_revision() -> None:
    store = Store()
    store.apply([Range(b"a"), Delete(b"a")])
    assert 1 == store.revision


def test_a_put_can_keep_the_value_or_the_lease_that_is_there() -> None:
    store = Store()
    store.grant(7, 10, now=0)
    put(store, b"a", b"1", lease=7)
    store.apply([Put(b"a", keep_value=True, lease=7)])
    store.apply([Put(b"a", b"2", keep_lease=True)])
    assert (b"2", 7) == (store.range(Range(b"a")).kvs[0].value, store.range(Range(b"a")).kvs[0].lease)
    with pytest.raises(KeyNotFound):
        store.apply([Put(b"absent", keep_value=True)])


def test_a_deletion_of_a_range_takes_that_range_and_tells_what_was_there() -> None:
    store = Store()
    for key in (b"a", b"b1", b"b2", b"c"):
        put(store, key)
    (found,) = store.apply([Delete(b"b", b"c")])
    assert ([b"b1", b"b2"], [b"a", b"c"]) == ([kv.key for kv in found.kvs], keys(store))


def test_a_limit_cuts_the_answer_but_not_the_count() -> None:
    store = Store()
    for key in (b"a", b"b", b"c"):
        put(store, key)
    found = store.range(Range(b"", ALL, limit=2))
    assert ([b"a", b"b"], 3) == ([kv.key for kv in found.kvs], found.count)


def test_an_older_revision_can_be_read_until_it_is_compacted() -> None:
    store = Store()
    put(store, b"a", b"1")
    then = put(store, b"b", b"1")
    put(store, b"a", b"2")
    store.apply([Delete(b"b")])
    put(store, b"c")
    assert [b"1", b"1"] == [kv.value for kv in store.range(Range(b"", ALL, revision=then)).kvs]
    with pytest.raises(FutureRevision):
        store.range(Range(b"a", revision=store.revision + 1))
    store.compact(then)
    assert [b"a", b"b"] == keys(store, revision=then)
    store.compact(then + 1)
    with pytest.raises(Compacted) as gone:
        store.range(Range(b"a", revision=then))
    assert then + 1 == gone.value.revision


def test_comparisons_see_absent_keys_as_version_and_revision_zero() -> None:
    store = Store()
    revision = put(store, b"a", b"1")
    assert store.holds([at_revision(b"a", revision), at_revision(b"absent", 0)])
    assert not store.holds([at_revision(b"a", 0)])
    assert store.holds([Comparison(b"a", "value", operator.gt, b"0"), Comparison(b"a", "version", operator.ne, 0)])


# Leases


def test_a_lease_ends_when_its_time_is_over_and_not_before() -> None:
    store = Store()
    store.grant(7, 10, now=100)
    put(store, b"a", lease=7)
    assert 110 == store.next_expiry
    assert 0 == store.expire(now=109.9)
    assert [b"a"] == keys(store)
    assert 1 == store.expire(now=110)
    assert [] == keys(store)
    assert store.next_expiry is None


def test_a_beat_gives_a_lease_its_full_time_again() -> None:
    store = Store()
    store.grant(7, 10, now=0)
    assert 10 == store.keep_alive(7, now=9)
    assert 0 == store.expire(now=18)
    assert 0 == store.keep_alive(7, now=19), "the beat came too late"


def test_all_keys_of_a_lease_go_in_one_revision() -> None:
    store = Store()
    store.grant(7, 10, now=0)
    for key in (b"b", b"a", b"c"):
        put(store, key, lease=7)
    watcher, _ = watch(store)
    store.revoke(7)
    events = watcher.take()
    assert [b"a", b"b", b"c"] == [e.kv.key for e in events]
    assert 1 == len({e.kv.mod_revision for e in events})
    with pytest.raises(LeaseNotFound):
        store.revoke(7)


def test_a_lease_id_is_granted_once() -> None:
    store = Store()
    store.grant(7, 10, now=0)
    with pytest.raises(LeaseExists):
        store.grant(7, 10, now=0)


# Watchers


def test_a_watcher_is_told_what_there_was_and_what_there_is() -> None:
    store = Store()
    put(store, b"a", b"1")
    watcher, wakes = watch(store)
    put(store, b"a", b"2")
    store.apply([Delete(b"a")])
    changed, deleted = watcher.take()
    assert (False, b"2", b"1") == (changed.deleted, changed.kv.value, changed.prev and changed.prev.value)
    assert (True, b"2") == (deleted.deleted, deleted.prev and deleted.prev.value)
    assert 2 == len(wakes)
    assert [] == watcher.take()


def test_a_watcher_from_an_older_revision_is_woken_for_what_it_missed() -> None:
    store = Store()
    put(store, b"a")
    second = put(store, b"b")
    put(store, b"beside")
    watcher, wakes = watch(store, revision=second, key=b"b", end=b"")
    assert 1 == len(wakes)
    assert [b"b"] == [e.kv.key for e in watcher.take()]


def test_a_watcher_of_other_keys_is_neither_woken_nor_outrun() -> None:
    store = Store(history=3)
    watcher, wakes = watch(store, key=b"mine", end=b"")
    for _ in range(10):
        put(store, b"theirs")
    assert [] == wakes
    assert [] == watcher.take()
    put(store, b"mine")
    assert [b"mine"] == [e.kv.key for e in watcher.take()]


def test_a_slow_watcher_falls_out_of_the_history_and_is_told_from_where_it_may_go_on() -> None:
    store = Store(history=3)
    watcher, _ = watch(store)
    for _ in range(4):
        put(store, b"a")
    with pytest.raises(Compacted) as gone:
        watcher.take()
    assert store.revision - 2 == gone.value.revision
    again, _ = watch(store, revision=gone.value.revision)
    assert 3 == len(again.take())
    with pytest.raises(Compacted):
        watch(store, revision=gone.value.revision - 1)


def test_the_history_is_bounded_however_much_is_written() -> None:
    store = Store(history=10)
    watcher, _ = watch(store, revision=store.revision)
    for _ in range(1000):
        put(store, b"a")
    assert store.revision - 9 == store.compacted
    with pytest.raises(Compacted):
        watcher.take()


def test_a_batch_never_ends_within_a_transaction() -> None:
    store = Store()
    watcher, _ = watch(store)
    store.apply([Put(b"a"), Put(b"b"), Put(b"c")])
    put(store, b"d")
    assert [[b"a", b"b", b"c"], [b"d"], []] == [[e.kv.key for e in watcher.take(limit=2)] for _ in range(3)]


def test_a_watcher_that_was_closed_is_not_woken() -> None:
    store = Store()
    watcher, wakes = watch(store)
    watcher.close()
    put(store, b"a")
    assert [] == wakes


def test_compaction_asks_for_a_revision_that_there_is() -> None:
    store = Store()
    put(store, b"a")
    store.compact(store.revision)
    with pytest.raises(Compacted):
        store.compact(store.revision - 1)
    with pytest.raises(FutureRevision):
        store.compact(store.revision + 1)

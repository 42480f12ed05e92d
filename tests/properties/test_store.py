"""Whatever is written to a store: a watcher can replay it, and the past can be read as it was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wire.store import ALL, Compacted, Delete, Kv, LeaseNotFound, Put, Range, Store, Watcher

KEYS = st.sampled_from([b"a", b"a/1", b"a/2", b"b"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.integers(0, 3)),
        st.tuples(st.just("delete"), KEYS, st.sampled_from([b"", b"b", ALL])),
        st.tuples(st.just("revoke"), st.just(b""), st.integers(1, 3)),
        st.tuples(st.just("pass time"), st.just(b""), st.integers(1, 5)),
        st.tuples(st.just("take"), st.just(b""), st.integers(1, 4)),
    ),
    max_size=40,
)
TTL_S = 7


def live(store: Store, revision: int = 0) -> dict[bytes, Kv]:
    return {kv.key: kv for kv in store.range(Range(b"", ALL, revision=revision)).kvs}


def replay(view: dict[bytes, Kv], watcher: Watcher, limit: int) -> None:
    for event in watcher.take(limit):
        assert view.get(event.kv.key) == event.prev
        if event.deleted:
            del view[event.kv.key]
        else:
            view[event.kv.key] = event.kv


@given(STEPS)
def test_snapshot_and_events_give_the_state_and_the_past_stays_readable(steps: list[tuple[str, bytes, object]]) -> None:
    store, now = Store(), 0.0
    for lease in (1, 2, 3):
        store.grant(lease, TTL_S, now)
    watcher, view = store.watch(b"", ALL, wake=lambda: None), live(store)
    past = {store.revision: live(store)}
    for what, key, extra in steps:
        now = step(store, what, key, extra, now)
        if what == "take":
            assert isinstance(extra, int)
            replay(view, watcher, extra)
        past[store.revision] = live(store)
    replay(view, watcher, 10_000)
    assert live(store) == view
    assert past == {revision: live(store, revision) for revision in past}


def step(store: Store, what: str, key: bytes, extra: object, now: float) -> float:
    try:
        match what, extra:
            case "put", int(lease):
                store.apply([Put(key, b"%d" % store.revision, lease)])
            case "delete", bytes(end):
                store.apply([Delete(key, end)])
            case "revoke", int(lease):
                store.revoke(lease)
            case "pass time", int(seconds):
                now += seconds
                store.expire(now)
    except LeaseNotFound:
        pass
    return now


@given(STEPS, st.integers(1, 5))
def test_a_watcher_that_starts_over_when_told_to_is_never_wrong(
    steps: list[tuple[str, bytes, object]], history: int
) -> None:
    store, now = Store(history=history), 0.0
    watcher, view = store.watch(b"", ALL, wake=lambda: None), live(store)
    for what, key, extra in [*steps, ("take", b"", 10_000)]:
        now = step(store, what, key, extra, now)
        if what == "take":
            assert isinstance(extra, int)
            try:
                replay(view, watcher, extra)
            except Compacted:
                watcher.close()
                watcher, view = store.watch(b"", ALL, wake=lambda: None), live(store)
    assert live(store) == view

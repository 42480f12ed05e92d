"""What etcd keeps, as a pure object: keys with revisions, leases with deadlines, a bounded history, watchers.

It decides what a write, a transaction, an expiry or a compaction does, as etcd would. It does not wait, listen, read
a clock or draw a lease id: `now` (monotonic seconds) and ids are arguments. `memory.py` puts the Registry contract
over it inside one process, `embedded.py` puts etcd's wire protocol over it.

A watcher is a cursor into the shared history, so a slow watcher costs no memory of its own. One that falls out of
the history gets `Compacted` and has to list again, exactly as with etcd.

Source for the semantics: etcd's API guarantees and mvcc documentation (etcd.io/docs/v3.5/learning).
"""

from __future__ import annotations

import operator
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

ALL = b"\x00"
"""As `end` of a range: every key from `key` on."""


class StoreError(Exception):
    """What was asked cannot be done; nothing was changed."""


class LeaseNotFound(StoreError):  # noqa: N818 - etcd's word
    pass


class LeaseExists(StoreError):  # noqa: N818
    pass


class DuplicateKey(StoreError):  # noqa: N818
    pass


class KeyNotFound(StoreError):  # noqa: N818
    pass


class FutureRevision(StoreError):  # noqa: N818
    pass


class Compacted(StoreError):  # noqa: N818
    """History before `revision` is gone; `revision` itself can still be read."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"history before revision {revision} is gone")
        self.revision = revision


class Kv(msgspec.Struct, frozen=True):
    key: bytes
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: int = 0


class Event(msgspec.Struct, frozen=True):
    """One key changed. After a deletion `kv` is a tombstone (version 0); `prev` is what was there before."""

    kv: Kv
    prev: Kv | None

    @property
    def deleted(self) -> bool:
        return self.kv.version == 0


class Range(msgspec.Struct, frozen=True):
    key: bytes
    end: bytes = b""
    limit: int = 0
    revision: int = 0


class Put(msgspec.Struct, frozen=True):
    key: bytes
    value: bytes = b""
    lease: int = 0
    keep_value: bool = False
    keep_lease: bool = False


class Delete(msgspec.Struct, frozen=True):
    key: bytes
    end: bytes = b""


Op = Range | Put | Delete


class Found(msgspec.Struct, frozen=True):
    """Answer to an operation: the keys read, or those there were before a put or a deletion."""

    kvs: tuple[Kv, ...] = ()
    count: int = 0


class Comparison(msgspec.Struct, frozen=True):
    key: bytes
    field: str
    """Name of a field of Kv."""
    holds: Callable[[Any, Any], bool]
    value: int | bytes


class Lease(msgspec.Struct):
    ttl_s: int
    deadline: float
    keys: set[bytes] = msgspec.field(default_factory=set)


def at_revision(key: bytes, revision: int) -> Comparison:
    """Holds if the key was last changed at `revision`; 0 is: it does not exist."""
    return Comparison(key, "mod_revision", operator.eq, revision)


def covers(key: bytes, end: bytes, at: bytes) -> bool:
    """Whether the range [key, end) holds the key `at`; an empty end means the one key."""
    if not end:
        return at == key
    return at >= key and (end == ALL or at < end)


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix`."""
    # 0xff has no successor: the byte before it is the one to count up.
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else ALL


class Watcher:
    """A place in the history. `wake` is called when there is something to take; it must not call back."""

    def __init__(self, store: Store, key: bytes, end: bytes, *, position: int, wake: Callable[[], None]) -> None:
        self._store, self._key, self._end = store, key, end
        self.position, self._wake = position, wake

    def covers(self, event: Event) -> bool:
        return covers(self._key, self._end, event.kv.key)

    def take(self, limit: int = 1000) -> list[Event]:
        """The next events, about `limit`, never part of a transaction. Raises Compacted when some are gone."""
        events, self.position = self._store.read(self.position, self.covers, limit)
        return events

    def notice(self, events: Sequence[Event], *, before: int, after: int) -> None:
        if any(self.covers(event) for event in events):
            self._wake()
        elif self.position == before:
            # Nothing for this watcher and it had everything: step over, so that others' writes never outrun it.
            self.position = after

    def close(self) -> None:
        self._store.forget(self)


class Store:
    def __init__(self, *, history: int = 10_000, revision: int = 1, kvs: Iterable[Kv] = ()) -> None:
        """`history` bounds the events kept; `revision` must be above any that an earlier store gave out; `kvs` are
        keys without a lease that an earlier one held."""
        assert history > 0
        self.revision = revision
        self.compacted = revision
        """Lowest revision that can be read or watched from."""
        self._history = history
        self._live = {kv.key: kv for kv in kvs}
        self._keys = sorted(self._live)
        self._leases: dict[int, Lease] = {}
        self._events: list[Event] = []
        self._dropped = 0
        """How many events left the history; a position counts from the first event ever."""
        self._watchers: dict[Watcher, None] = {}

    # Reading

    def range(self, asked: Range) -> Found:
        if asked.revision > self.revision:
            raise FutureRevision(f"revision {asked.revision} is ahead of {self.revision}")
        if asked.revision and asked.revision < self.compacted:
            raise Compacted(self.compacted)
        if asked.revision and asked.revision < self.revision:
            kvs = self._past(asked)
        else:
            kvs = [self._live[k] for k in self._select(asked.key, asked.end)]
        return Found(tuple(kvs[: asked.limit] if asked.limit else kvs), len(kvs))

    def holds(self, comparisons: Sequence[Comparison]) -> bool:
        return all(c.holds(getattr(self._live.get(c.key, Kv(c.key)), c.field), c.value) for c in comparisons)

    def _select(self, key: bytes, end: bytes) -> list[bytes]:
        if not end:
            return [key] if key in self._live else []
        first = bisect_left(self._keys, key)
        return self._keys[first:] if end == ALL else self._keys[first : bisect_left(self._keys, end)]

    def _past(self, asked: Range) -> list[Kv]:
        """Undo what happened since, newest first; a page read at an older revision is rare and the history short."""
        kvs = {k: self._live[k] for k in self._select(asked.key, asked.end)}
        for event in reversed(self._events):
            if event.kv.mod_revision <= asked.revision:
                break
            if not covers(asked.key, asked.end, event.kv.key):
                continue
            if event.prev is None:
                kvs.pop(event.kv.key, None)
            else:
                kvs[event.kv.key] = event.prev
        return [kvs[k] for k in sorted(kvs)]

    # Writing

    def apply(self, ops: Sequence[Op]) -> list[Found]:
        """All of it or nothing, at one new revision; without a change the revision stays."""
        self._check(ops)
        revision, events, answers = self.revision + 1, list[Event](), list[Found]()
        for op in ops:
            if isinstance(op, Range):
                answers.append(self.range(op))
            elif isinstance(op, Put):
                answers.append(self._put(op, revision, events))
            else:
                answers.append(self._delete(op, revision, events))
        if events:
            self.revision = revision
            self._remember(events)
        return answers

    def _check(self, ops: Sequence[Op]) -> None:
        puts = [op for op in ops if isinstance(op, Put)]
        if len({op.key for op in puts}) < len(puts):
            raise DuplicateKey("a transaction may put a key once")
        for op in puts:
            if op.lease and op.lease not in self._leases:
                raise LeaseNotFound(f"lease {op.lease:x}")
            if (op.keep_value or op.keep_lease) and op.key not in self._live:
                raise KeyNotFound(repr(op.key))

    def _put(self, op: Put, revision: int, events: list[Event]) -> Found:
        old = self._live.get(op.key)
        new = Kv(
            op.key,
            old.value if op.keep_value and old else op.value,
            old.create_revision if old else revision,
            revision,
            old.version + 1 if old else 1,
            old.lease if op.keep_lease and old else op.lease,
        )
        if old is None:
            insort(self._keys, op.key)
        elif old.lease:
            self._leases[old.lease].keys.discard(op.key)
        if new.lease:
            self._leases[new.lease].keys.add(op.key)
        self._live[op.key] = new
        events.append(Event(new, old))
        return Found((old,) if old else (), 1)

    def _delete(self, op: Delete, revision: int, events: list[Event]) -> Found:
        gone = [self._live.pop(k) for k in self._select(op.key, op.end)]
        if gone:
            first = bisect_left(self._keys, gone[0].key)
            del self._keys[first : first + len(gone)]
        for old in gone:
            if old.lease:
                self._leases[old.lease].keys.discard(old.key)
            events.append(Event(Kv(old.key, mod_revision=revision), old))
        return Found(tuple(gone), len(gone))

    # History

    def _remember(self, events: list[Event]) -> None:
        before = self._dropped + len(self._events)
        self._events += events
        self._drop(len(self._events) - self._history)
        for watcher in self._watchers:
            watcher.notice(events, before=before, after=before + len(events))

    def _drop(self, count: int) -> None:
        if count > 0:
            self.compacted = max(self.compacted, self._events[count - 1].kv.mod_revision + 1)
            self._dropped += count
            del self._events[:count]

    def compact(self, revision: int) -> None:
        """Forget the history before `revision`."""
        if revision > self.revision:
            raise FutureRevision(f"revision {revision} is ahead of {self.revision}")
        if revision < self.compacted:
            raise Compacted(self.compacted)
        self._drop(self._first_from(revision))
        self.compacted = revision

    def _first_from(self, revision: int) -> int:
        return bisect_left(self._events, revision, key=lambda event: event.kv.mod_revision)

    def watch(self, key: bytes, end: bytes = b"", *, revision: int = 0, wake: Callable[[], None]) -> Watcher:
        """Watch a range from `revision` on (0: from now on). Raises Compacted when that is history no more."""
        if revision and revision < self.compacted:
            raise Compacted(self.compacted)
        index = self._first_from(revision) if revision else len(self._events)
        watcher = Watcher(self, key, end, position=self._dropped + index, wake=wake)
        self._watchers[watcher] = None
        if any(watcher.covers(event) for event in self._events[index:]):
            wake()
        return watcher

    def read(self, position: int, wanted: Callable[[Event], bool], limit: int) -> tuple[list[Event], int]:
        """Wanted events from a position on, and the position after them; whole transactions only."""
        if position < self._dropped:
            raise Compacted(self.compacted)
        taken: list[Event] = []
        index = position - self._dropped
        while index < len(self._events):
            event = self._events[index]
            if len(taken) >= limit and event.kv.mod_revision != taken[-1].kv.mod_revision:
                break
            if wanted(event):
                taken.append(event)
            index += 1
        return taken, self._dropped + index

    def forget(self, watcher: Watcher) -> None:
        self._watchers.pop(watcher, None)

    # Leases

    def grant(self, lease: int, ttl_s: int, now: float) -> None:
        if lease in self._leases:
            raise LeaseExists(f"lease {lease:x}")
        self._leases[lease] = Lease(ttl_s, now + ttl_s)

    def keep_alive(self, lease: int, now: float) -> int:
        """The time to live from now on, 0 when the lease is gone."""
        self.expire(now)
        found = self._leases.get(lease)
        if found is None:
            return 0
        found.deadline = now + found.ttl_s
        return found.ttl_s

    def revoke(self, lease: int) -> None:
        """End a lease and delete its keys, in one revision."""
        found = self._leases.get(lease)
        if found is None:
            raise LeaseNotFound(f"lease {lease:x}")
        self.apply([Delete(key) for key in sorted(found.keys)])
        del self._leases[lease]

    def expire(self, now: float) -> int:
        """Revoke the leases whose time is over; return how many there were."""
        over = [lease for lease, found in self._leases.items() if found.deadline <= now]
        for lease in over:
            self.revoke(lease)
        return len(over)

    @property
    def next_expiry(self) -> float | None:
        return min((found.deadline for found in self._leases.values()), default=None)

    @property
    def leases(self) -> dict[int, Lease]:
        return dict(self._leases)

"""What the embedded registry keeps over a restart: keys without a lease (policies, tenants, API keys), in one file.

Every change of such a key writes the whole file, before the client gets its answer. That is meant for hundreds of
keys that change when people change them, not for load. The file is replaced by renaming, so that a crash leaves
either the old or the new one. It holds hashes of API keys, so only its owner may read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from wire.store import ALL, Compacted, Event, Kv, Range, Store, Watcher

VERSION = 1


class Saved(msgspec.Struct, frozen=True):
    revision: int
    kvs: tuple[Kv, ...]
    v: int = VERSION


class DataFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._unsaved = False

    def load(self, revision: int) -> Store:
        """The store as it was saved, at `revision` or a later one. Raises ValueError or OSError."""
        try:
            saved = msgspec.json.decode(self._path.read_bytes(), type=Saved)
        except FileNotFoundError:
            return Store(revision=revision)
        except msgspec.DecodeError as error:
            raise ValueError(f"{self._path} is not a data file of the registry: {error}") from error
        if saved.v > VERSION:
            raise ValueError(f"{self._path} was written by a newer version ({saved.v})")
        return Store(revision=max(revision, saved.revision + 1), kvs=saved.kvs)

    def follow(self, store: Store) -> Callable[[], None]:
        """Return what to call after a change: it saves if a key without a lease was concerned. May raise OSError."""
        watcher = _watch_all(store)

        def save_if_changed() -> None:
            nonlocal watcher
            try:
                while events := watcher.take():
                    self._unsaved = self._unsaved or any(_without_lease(event) for event in events)
            except Compacted:  # a great many leases ended at once: nobody knows what else was among it
                watcher.close()
                watcher, self._unsaved = _watch_all(store), True
            if self._unsaved:
                self._save(store)
                self._unsaved = False

        return save_if_changed

    def _save(self, store: Store) -> None:
        kept = tuple(kv for kv in store.range(Range(b"", ALL)).kvs if not kv.lease)
        data = msgspec.json.format(msgspec.json.encode(Saved(store.revision, kept)))
        fresh = self._path.with_name(self._path.name + ".new")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)


def _watch_all(store: Store) -> Watcher:
    return store.watch(b"", ALL, wake=lambda: None)


def _without_lease(event: Event) -> bool:
    return any(kv is not None and kv.version > 0 and not kv.lease for kv in (event.kv, event.prev))

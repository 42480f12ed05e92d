"""The registry as every room sees it: a small set of keys with revisions, leases and a watch that never loses an event.

Two implementations pass one contract suite (tests/contracts/): `etcd.EtcdRegistry` for real etcd, and
`memory.MemoryRegistry` inside one process. Nothing here may hang: each call has a time limit and raises
`RegistryUnavailable` after it; a watch and a lease repair themselves until their task is cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec


class RegistryError(Exception):
    """The registry answered, and the answer is no."""


class RegistryUnavailable(RegistryError):  # noqa: N818 - the field's word
    """No answer within the time limit; what was asked may or may not have happened."""


class LeaseLost(RegistryError):  # noqa: N818
    """The lease is gone and with it every key put under it: grant a new one and register again."""


class Entry(msgspec.Struct, frozen=True):
    key: str
    value: bytes
    revision: int
    """Revision of the last change of this key; what `put_if` compares."""
    lease: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """All keys under the prefix at one revision. Comes first, and again whenever history was lost (compaction)."""

    revision: int
    entries: tuple[Entry, ...]


class Change(msgspec.Struct, frozen=True):
    key: str
    entry: Entry | None
    """None: the key was deleted, by someone or with its lease."""


class Changes(msgspec.Struct, frozen=True):
    """Changes in order, none left out, none twice, since the last snapshot or changes."""

    revision: int
    changes: tuple[Change, ...]


class Registry(Protocol):
    async def get(self, key: str) -> Entry | None: ...

    async def list(self, prefix: str) -> Snapshot: ...

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Return the revision. Raises LeaseLost when the lease is unknown."""
        ...

    async def put_if(self, key: str, value: bytes, *, revision: int, lease: int = 0) -> int | None:
        """Put if the key was last changed at `revision` (0: if it does not exist). None: someone else was first."""
        ...

    async def delete(self, key: str) -> bool:
        """True if the key was there."""
        ...

    async def grant(self, ttl_s: int) -> int:
        """A lease that lives `ttl_s` seconds beyond its last keep-alive. Servers may grant more, never less."""
        ...

    async def keep_alive(self, lease: int, ttl_s: int) -> None:
        """Run until cancelled, renewing at a third of the TTL. Raises LeaseLost as soon as the lease is known
        or must be assumed to be gone."""
        ...

    async def revoke(self, lease: int) -> None:
        """End the lease and delete its keys at once. Unknown leases are no error."""
        ...

    def watch(
        self, prefix: str, *, on_connected: Callable[[bool], None] = lambda _: None
    ) -> AsyncIterator[Snapshot | Changes]:
        """A Snapshot, then Changes for ever. Survives restarts, failovers and compaction (a new Snapshot follows).

        `on_connected` is told when the stream to the registry is lost and when it is back: what was delivered stays
        true as last known; a broken watch never empties a view."""
        ...

    async def close(self) -> None: ...

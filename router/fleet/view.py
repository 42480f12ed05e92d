"""What this router believes: one immutable view, built from the registry's entries and replaced whole.

Pure: entries in, view out. A record that cannot be read is left out and named, never fatal.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from router.core.model import Fleet
from wire.records import (
    ApiKey,
    ModelPolicy,
    ModelState,
    Node,
    Record,
    Replica,
    Router,
    Tenant,
    UnreadableRecord,
    decode,
    kind_of,
)
from wire.registry import Change

GONE_S = 600.0
"""A model whose last replica vanished so lately is unavailable, not unknown: clients try a 503 again, and no 404."""


class View(msgspec.Struct, frozen=True):
    fleet: Fleet = Fleet()
    keys: dict[str, ApiKey] = {}
    """By SHA-256 of the key, hex."""
    models: frozenset[str] = frozenset()
    """Names that can be asked for: of replicas in any state, and of adapters that policies add to them."""
    gone: dict[str, float] = {}
    """Names that could be asked for a short while ago, with the loop time when they vanished."""
    synced: bool = False
    """A first snapshot has come."""


def served_models(fleet: Fleet) -> frozenset[str]:
    names = {name for replica in fleet.replicas.values() for name in (replica.model, *replica.adapters)}
    return frozenset(names | {m.model for m in fleet.models.values() if not m.adapter_of or m.adapter_of in names})


def to_be_left(fleet: Fleet) -> frozenset[str]:
    """Replicas drained at once whose work another ready one could take over: without one, theirs is to stay."""
    return frozenset(
        left.replica for left in fleet.replicas.values() if left.moving and ready_beside(fleet, left, {left.replica})
    )


def ready_beside(fleet: Fleet, left: Replica, tried: Collection[str]) -> bool:
    """Whether a ready replica that was not tried could do what this one does."""

    def could_take_over(other: Replica) -> bool:
        node = fleet.nodes.get(other.node)
        same = (other.model, other.task) == (left.model, left.task) and set(left.adapters) <= set(other.adapters)
        return same and other.state is ModelState.READY and not other.moving and not (node and node.draining)

    return any(could_take_over(other) for other in fleet.replicas.values() if other.replica not in tried)


def gone_since(now_known: View, before: View, *, now: float) -> dict[str, float]:
    """Models without any replica or policy that had one within `GONE_S`: name -> when that ended."""
    went = before.gone | dict.fromkeys(before.models, now)
    return {name: at for name, at in went.items() if name not in now_known.models and now - at < GONE_S}


class Beliefs:
    """The readable records by key, kept up to date by changes; `view()` freezes them."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._records: dict[str, Record] = {}
        self._revision = 0
        self._synced = False
        self.unreadable: dict[str, str] = {}
        """Key -> why its record is left out."""

    def replace(self, revision: int, entries: dict[str, bytes]) -> None:
        """Start over from a snapshot."""
        self._records, self.unreadable = {}, {}
        for key, value in entries.items():
            self._put(key, value)
        self._revision, self._synced = revision, True

    def apply(self, revision: int, changes: tuple[Change, ...]) -> None:
        for change in changes:
            self.unreadable.pop(change.key, None)
            if change.entry is None:
                self._records.pop(change.key, None)
            else:
                self._put(change.key, change.entry.value)
        self._revision = revision

    def view(self) -> View:
        """Nodes and replicas of this region; tenants, keys and policies of all."""
        nodes: dict[str, Node] = {}
        replicas: dict[str, Replica] = {}
        models: dict[str, ModelPolicy] = {}
        tenants: dict[str, Tenant] = {}
        keys: dict[str, ApiKey] = {}
        routers = 0
        for record in self._records.values():
            match record:
                case Node() if record.region == self._region:
                    nodes[record.node] = record
                case Replica() if record.region == self._region:
                    replicas[record.replica] = record
                case Router() if record.region == self._region:
                    routers += 1
                case ModelPolicy():
                    models[record.model] = record
                case Tenant():
                    tenants[record.tenant] = record
                case ApiKey():
                    keys[record.sha256] = record
                case _:
                    pass
        fleet = Fleet(
            revision=self._revision,
            nodes=nodes,
            replicas=replicas,
            models=models,
            tenants=tenants,
            routers=max(routers, 1),
        )
        return View(fleet=fleet, keys=keys, models=served_models(fleet), synced=self._synced)

    def _put(self, key: str, value: bytes) -> None:
        kind = kind_of(key)
        if kind is None:
            return
        try:
            self._records[key] = decode(kind, value)
        except UnreadableRecord as error:
            self._records.pop(key, None)
            self.unreadable[key] = str(error)

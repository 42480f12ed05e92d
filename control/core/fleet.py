"""What the control plane believes of the fleet, folded from registry entries, and how it is told to people:
rows for tables, and one plain sentence per change. It decides nothing about the fleet.

An unreadable record is kept apart with its reason: it must not hide the readable ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from wire.records import (
    ModelPolicy,
    ModelState,
    Node,
    Record,
    Replica,
    Router,
    UnreadableRecord,
    decode,
    kind_of,
)

R = TypeVar("R", bound=Record)

_ORDER = list(ModelState)


class Fleet:
    """Records by key. `set` and `remove` return what to tell people, or nothing."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.unreadable: dict[str, str] = {}

    def replace(self, entries: Mapping[str, bytes]) -> list[str]:
        """Take a whole snapshot; the sentences are those of the differences."""
        gone = [key for key in (*self.records, *self.unreadable) if key not in entries]
        sentences = [s for key in gone if (s := self.remove(key))]
        return sentences + [s for key, value in entries.items() if (s := self.set(key, value))]

    def set(self, key: str, value: bytes) -> str:
        kind = kind_of(key)
        if kind is None:
            return ""
        before = self.records.get(key)
        try:
            after = decode(kind, value)
        except UnreadableRecord as error:
            known = self.unreadable.get(key) == str(error)
            self.unreadable[key] = str(error)
            return "" if known else f"record {key} is skipped: {error}"
        self.unreadable.pop(key, None)
        self.records[key] = after
        return "" if after == before else _told(before, after)

    def remove(self, key: str) -> str:
        self.unreadable.pop(key, None)
        before = self.records.pop(key, None)
        return _gone(before) if before is not None else ""

    def of(self, kind: type[R]) -> list[R]:
        return [self.records[key] for key in sorted(self.records) if isinstance(self.records[key], kind)]  # type: ignore[misc]


def _told(before: Record | None, after: Record) -> str:
    match after, before:
        case Replica(), None:
            return f"replica {after.replica} ({after.model}) is {after.state}"
        case Replica(), Replica() if before.generation != after.generation:
            return f"replica {after.replica} ({after.model}) is {after.state}, generation {after.generation}"
        case Replica(), Replica() if before.state != after.state:
            return f"replica {after.replica} ({after.model}) was {before.state}, is {after.state}"
        case Node(), None:
            return f"node {after.node} ({after.device_class}) has come, agent at {after.address}"
        case Node(), Node() if before.draining != after.draining:
            return f"node {after.node} " + ("is draining" if after.draining else "takes requests again")
        case Node(), Node() if before.started_unix_ns != after.started_unix_ns:
            return f"node {after.node} has a new agent process"
        case Router(), None:
            return f"router {after.router} has come at {after.url}"
        case _:
            return ""


def _gone(before: Record) -> str:
    match before:
        case Replica():
            return f"replica {before.replica} ({before.model}) is gone"
        case Node():
            return f"node {before.node} is gone: its agent left or has not spoken for a lease time"
        case Router():
            return f"router {before.router} is gone"
        case _:
            return ""


class NodeRow(msgspec.Struct, frozen=True):
    node: str
    region: str
    device_class: str
    state: str
    replicas: str
    models: tuple[str, ...]
    age_s: float
    address: str


def node_rows(fleet: Fleet, *, now_unix_ns: int) -> list[NodeRow]:
    return [_node_row(node, _on(fleet, node), now_unix_ns) for node in fleet.of(Node)]


def _node_row(node: Node, replicas: list[Replica], now_unix_ns: int) -> NodeRow:
    return NodeRow(
        node=node.node,
        region=node.region,
        device_class=node.device_class,
        state="draining" if node.draining else "ready",
        replicas=by_state(replicas),
        models=tuple(sorted({r.model for r in replicas})),
        age_s=max(0.0, (now_unix_ns - node.started_unix_ns) / 1e9) if node.started_unix_ns else -1.0,
        address=node.address,
    )


class ModelRow(msgspec.Struct, frozen=True):
    model: str
    replicas: str
    nodes: int
    task: str
    routing: str
    fallback: str
    adapter_of: str


def model_rows(fleet: Fleet) -> list[ModelRow]:
    """Every model that a replica serves or a policy names."""
    policies = {p.model: p for p in fleet.of(ModelPolicy)}
    replicas = fleet.of(Replica)
    names = sorted({r.model for r in replicas} | set(policies))
    return [_model_row(policies.get(name) or ModelPolicy(model=name), replicas) for name in names]


def _model_row(policy: ModelPolicy, replicas: list[Replica]) -> ModelRow:
    mine = [r for r in replicas if r.model == (policy.adapter_of or policy.model)]
    return ModelRow(
        model=policy.model,
        replicas=by_state(mine),
        nodes=len({r.node for r in mine}),
        task=", ".join(sorted({r.task.value for r in mine})),
        routing=policy.routing,
        fallback=policy.fallback,
        adapter_of=policy.adapter_of,
    )


def by_state(replicas: list[Replica]) -> str:
    """`2 ready, 1 loading`, the best states first."""
    counts = Counter(r.state for r in replicas)
    useful = sorted(counts, key=lambda state: (state is not ModelState.READY, _ORDER.index(state)))
    return ", ".join(f"{counts[state]} {state.value}" for state in useful) or "none"


def find_replica(fleet: Fleet, name: str) -> tuple[Replica, Node] | None:
    """The replica and the node whose agent commands it; None when either is not there."""
    nodes = {(n.region, n.node): n for n in fleet.of(Node)}
    for replica in fleet.of(Replica):
        if replica.replica == name and (node := nodes.get((replica.region, replica.node))):
            return replica, node
    return None


def find_node(fleet: Fleet, name: str) -> Node | None:
    return next((node for node in fleet.of(Node) if node.node == name), None)


def _on(fleet: Fleet, node: Node) -> list[Replica]:
    return [r for r in fleet.of(Replica) if (r.region, r.node) == (node.region, node.node)]

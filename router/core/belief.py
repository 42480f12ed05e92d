"""What the router believes of its fleet, kept from news: the registry's snapshots, load reports, broken streams.

Nodes, replicas and groups of replicas by base model; joins and leaves; counts that outlive a replica. Decides nothing.
Sources: routing.md sections 2.1, 2.4, 2.5 and 2.8.
"""

from __future__ import annotations

from collections import OrderedDict

from router.core.classes import Cost, prior
from router.core.constants import Constants
from router.core.group import Group
from router.core.learn import ClassCost
from router.core.model import Fleet, LoadReport
from router.core.replica import NodeState, ReplicaState
from router.core.stall import Heard
from wire.records import Replica, Task

DEPARTED = 10_000
"""Counts of requests sent are kept for so many replicas that left: agents compare with them when one comes back."""

EMBED = Task.EMBED
GroupKey = tuple[str, bool]
"""Base model, and whether the replicas are pooling ones (embeddings)."""


class Belief:
    def __init__(self, constants: Constants, costs: dict[tuple[str, str], Cost]) -> None:
        self._constants = constants
        self._costs = costs
        self.fleet = Fleet()
        self.nodes: dict[str, NodeState] = {}
        self.replicas: dict[str, ReplicaState] = {}
        self.groups: dict[GroupKey, Group] = {}
        self._bases: dict[str, str] = {}
        self._classes: dict[tuple[str, str], ClassCost] = {}
        self._departed: OrderedDict[str, int] = OrderedDict()
        """Requests sent to replicas that left."""
        self._epochs: dict[str, tuple[int, int]] = {}
        self._leaving: list[ReplicaState] = []
        """Gone from the registry with requests of ours still under way."""

    def apply(self, fleet: Fleet, now: float) -> None:
        first = not self.fleet.replicas
        old, self.fleet = self.fleet.replicas, fleet
        for name in old.keys() - fleet.replicas.keys():
            self._leave(self.replicas[name])
        for name, node in self.nodes.items():
            node.record = fleet.nodes.get(name)
        for name, record in fleet.replicas.items():
            state = self.replicas.get(name)
            if state is not None and _key(state.record) != _key(record):
                self._leave(state)
                state = None
            if state is None:
                self._join(record, now, fresh=not first)
            elif state.record is not record:
                self._renew(state, record, now)
        self._bases = {adapter: r.model for r in fleet.replicas.values() for adapter in r.adapters}
        self._bases |= {p.model: p.adapter_of for p in fleet.models.values() if p.adapter_of}
        for group in self.groups.values():
            group.routers = max(1, fleet.routers)
            for state in group.present:
                group.refresh(state, now)

    def report(self, report: LoadReport, now: float) -> None:
        """Reports that arrive out of order are dropped: an older one would undo a newer."""
        at = (report.epoch, report.sequence)
        node = self.nodes.get(report.node)
        if node is None or at <= self._epochs.get(report.node, (-1, -1)):
            return
        self._epochs[report.node] = at
        node.lost = False
        for load in report.replicas:
            state = self.replicas.get(load.replica)
            if state is None or load.generation < state.generation:
                continue
            group = self.group_of(state)
            if load.generation > state.generation:
                group.restart(state, load.generation)
            if state.load is None or state.load.adapters != load.adapters:
                group.adapters_changed()
            state.hear(load, now)
        self.refresh(node, now)

    def node_lost(self, name: str, now: float) -> None:
        node = self.nodes.get(name)
        if node is not None:
            node.lost = True
            self._epochs.pop(name, None)
            self.refresh(node, now)

    def heard(self, name: str, now: float) -> Heard | None:
        """What the replica's agent says of it; None while nobody speaks for it."""
        state = self.replicas.get(name)
        if state is None:
            return Heard(left=True)
        if state.load is None or state.node.lost:
            return None
        load, ledger = state.load, state.ledger
        age_s = now - ledger.reported_at
        cost = state.cost.prefill * state.cost.prior.prefill_ms * state.node.slowness.at(now)
        return Heard(
            generation=load.generation,
            age_s=age_s,
            scraped_age_s=now - ledger.scraped_at,
            idle_s=load.idle_s + age_s if load.idle_s else 0.0,
            running=load.running,
            waiting=load.waiting,
            prefill_s=0.001 * cost * ledger.waiting_tokens,
        )

    def observe_rtt(self, name: str, rtt_s: float) -> None:
        node = self.nodes.get(name)
        if node is not None:
            node.rtt_ms.learn(1000.0 * rtt_s)

    def changed(self, replica: ReplicaState) -> None:
        """Something was sent to it, started or ended: its neighbours on the GPU feel it too."""
        if replica.row >= 0:
            for state in replica.node.replicas:
                state.stale.add(state.row)
        elif not replica.ledger.entries and replica in self._leaving:
            self._leaving.remove(replica)

    def refresh(self, node: NodeState, now: float) -> None:
        for state in node.replicas:
            self.group_of(state).refresh(state, now)

    def group_of(self, state: ReplicaState) -> Group:
        return self.groups[_key(state.record)[:2]]

    def base(self, model: str) -> str:
        """The model itself, or the one it is an adapter of."""
        return self._bases.get(model, model)

    def known(self, model: str) -> bool:
        return (
            (model, False) in self.groups
            or (model, True) in self.groups
            or model in self.fleet.models
            or model in self._bases
        )

    def sent(self, name: str) -> dict[str, int]:
        node = self.nodes.get(name)
        return {state.record.replica: state.ledger.sent for state in node.replicas} if node else {}

    def in_flight(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for state in (*self.replicas.values(), *self._leaving):
            if state.ledger.entries:
                name = state.record.replica
                counts[name] = counts.get(name, 0) + len(state.ledger.entries)
        return counts

    def bound_indexes(self) -> None:
        """Keep all prefix indexes together under their limit, by making the largest forget its older half."""
        groups = list(self.groups.values())
        total = self._constants.prefix_blocks_total
        while sum(len(g.index) for g in groups) > total or 2 * sum(g.index.young for g in groups) > total:
            max(groups, key=lambda group: len(group.index)).index.turn()

    def _join(self, record: Replica, now: float, *, fresh: bool) -> None:
        node = self.nodes.get(record.node)
        if node is None:
            node = NodeState(record.node, self.fleet.nodes.get(record.node), self._constants)
            self.nodes[record.node] = node
        model, embedding, _ = _key(record)
        group = self.groups.get((model, embedding))
        if group is None:
            group = Group(model, embedding=embedding, constants=self._constants)
            self.groups[(model, embedding)] = group
        state = ReplicaState(
            record,
            node,
            self._class_of(record),
            self._constants,
            sent=self._departed.pop(record.replica, 0),
            now=now,
        )
        if fresh:
            state.ready_since = now
        self.replicas[record.replica] = state
        node.replicas.append(state)
        group.join(state)

    def _renew(self, state: ReplicaState, record: Replica, now: float) -> None:
        state.renew(record, now)
        if record.generation > state.generation:
            self.group_of(state).restart(state, record.generation)

    def _leave(self, state: ReplicaState) -> None:
        key = _key(state.record)[:2]
        group = self.groups[key]
        group.leave(state)
        if not group.present:
            del self.groups[key]
        state.row = -1
        del self.replicas[state.record.replica]
        state.node.replicas.remove(state)
        if not state.node.replicas:
            del self.nodes[state.node.name]
            self._epochs.pop(state.node.name, None)
        if state.ledger.entries:
            self._leaving.append(state)
        self._departed[state.record.replica] = state.ledger.sent
        if len(self._departed) > DEPARTED:
            self._departed.popitem(last=False)

    def _class_of(self, record: Replica) -> ClassCost:
        node = self.fleet.nodes.get(record.node)
        device = record.device_class
        if device == "unknown" and node is not None:
            device = node.device_class
        key = (record.model, device)
        if key not in self._classes:
            self._classes[key] = ClassCost(prior(*key, self._costs), self._constants)
        return self._classes[key]


def _key(record: Replica) -> tuple[str, bool, str]:
    return record.model, record.task is EMBED, record.node

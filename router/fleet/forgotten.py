"""Nodes that the registry forgot while their agents still answer us.

A lease runs out when the registry or the way to it stood still, and all leases are lost with a registry's data. The
hosts run on, and register again within a beat; until then an emptier view would fail requests that they could serve. A
node that leaves on purpose drains first, so a draining one is believed to be gone at once. Pure. Source: Eureka's
self-preservation.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from router.core.model import Fleet

LIMIT_S = 15.0
"""A lease and a half of the default agent: longer than it takes to notice a lost lease and to register again."""


class Forgotten:
    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        """Node -> when it vanished."""

    def __len__(self) -> int:
        return len(self._since)

    def restored(self, fleet: Fleet, before: Fleet, answering: Collection[str], *, now: float) -> Fleet:
        """The fleet with those nodes of the one believed in before that were forgotten, and with their replicas."""
        missing = {
            name
            for name, node in before.nodes.items()
            if name not in fleet.nodes and name in answering and not node.draining
        }
        since = {name: self._since.get(name, now) for name in missing}
        self._since = {name: at for name, at in since.items() if now < at + LIMIT_S}
        if not self._since:
            return fleet
        nodes = {name: before.nodes[name] for name in self._since}
        replicas = {name: replica for name, replica in before.replicas.items() if replica.node in nodes}
        return msgspec.structs.replace(fleet, nodes=nodes | fleet.nodes, replicas=replicas | fleet.replicas)

    def patience_s(self, now: float) -> float | None:
        """Until the first of them is given up; None while there is none."""
        return max(0.0, min(self._since.values()) + LIMIT_S - now) if self._since else None

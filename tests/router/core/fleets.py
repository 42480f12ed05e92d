"""Small fleets for the tests of the core."""

from __future__ import annotations

import random

from router.core.constants import Constants
from router.core.dispatch import CoreDispatcher
from router.core.model import Fleet, LoadReport, ReplicaLoad, Shape
from wire.records import ModelPolicy, ModelState, Node, Replica


def replica(name: str, state: ModelState = ModelState.READY, **more: object) -> Replica:
    fields = {"node": f"n-{name}", "region": "eu", "model": "m", "address": "127.0.0.1:1"} | more
    return Replica(replica=name, state=state, **fields)  # type: ignore[arg-type]


def fleet(
    *replicas: Replica, models: tuple[ModelPolicy, ...] = (), routers: int = 1, draining: tuple[str, ...] = ()
) -> Fleet:
    nodes = {
        r.node: Node(
            node=r.node, region="eu", address="127.0.0.1:2", device_class="h100-80g", draining=r.node in draining
        )
        for r in replicas
    }
    return Fleet(1, nodes, {r.replica: r for r in replicas}, {p.model: p for p in models}, routers=routers)


def dispatcher(
    *replicas: Replica, models: tuple[ModelPolicy, ...] = (), constants: Constants | None = None, seed: int = 1
) -> CoreDispatcher:
    """At time 0, without reports; nothing is explored unless constants say so."""
    core = CoreDispatcher(rng=random.Random(seed), constants=constants or Constants(explore=0.0))
    core.apply(fleet(*replicas, models=models), 0.0)
    return core


def shape(model: str = "m", prompt: bytes = b"x" * 400, **more: object) -> Shape:
    return Shape(request_id="r", model=model, prompt=prompt, **more)  # type: ignore[arg-type]


def load(name: str, **more: object) -> ReplicaLoad:
    return ReplicaLoad(replica=name, **more)  # type: ignore[arg-type]


def report(*loads: ReplicaLoad, node: str = "", sequence: int = 1, epoch: int = 1) -> LoadReport:
    return LoadReport(node=node or f"n-{loads[0].replica}", epoch=epoch, sequence=sequence, replicas=loads)

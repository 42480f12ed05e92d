from __future__ import annotations

import random

import pytest

from router.core.dispatch import CoreDispatcher
from router.core.model import Decision, Ending, Fleet, LoadReport, ReplicaLoad, Shape, Verdict
from wire.records import ModelPolicy, ModelState, Node, Replica


def replica(name: str, state: ModelState = ModelState.READY, **more: object) -> Replica:
    fields = {"node": f"n-{name}", "region": "eu", "model": "m", "address": "127.0.0.1:1"} | more
    return Replica(replica=name, state=state, **fields)  # type: ignore[arg-type]


def dispatcher(*replicas: Replica, models: tuple[ModelPolicy, ...] = ()) -> CoreDispatcher:
    core = CoreDispatcher(rng=random.Random(1))
    nodes = {r.node: Node(node=r.node, region="eu", address="127.0.0.1:2") for r in replicas}
    core.apply(Fleet(1, nodes, {r.replica: r for r in replicas}, {p.model: p for p in models}), 0.0)
    return core


def shape(model: str = "m", prompt: bytes = b"x" * 400) -> Shape:
    return Shape(request_id="r", model=model, prompt=prompt)


def send(core: CoreDispatcher) -> Decision:
    decision = core.pick(shape(), now=0.0)
    assert Verdict.SEND is decision.verdict
    return decision


def test_an_unknown_model_is_told_apart_from_one_without_replicas() -> None:
    core = dispatcher(replica("a", ModelState.FAILED), models=(ModelPolicy(model="known"),))
    assert Verdict.UNKNOWN_MODEL is core.pick(shape("nobody"), now=0.0).verdict
    assert Verdict.NONE is core.pick(shape("known"), now=0.0).verdict
    assert Verdict.NONE is core.pick(shape("m"), now=0.0).verdict
    assert core.pick(shape("m"), now=0.0).retry_after_s > 0


def test_requests_spread_over_equal_replicas() -> None:
    core = dispatcher(replica("a"), replica("b"), replica("c"))
    for index in range(9):
        asked = shape(prompt=bytes([index]) * 16_384)
        core.begin(core.pick(asked, now=0.0), asked, 0.0)
    assert {"a": 3, "b": 3, "c": 3} == core.in_flight()


@pytest.mark.parametrize("ending", list(Ending))
def test_every_ending_takes_the_request_off_the_counts_once(ending: Ending) -> None:
    core = dispatcher(replica("a"))
    flight = core.begin(send(core), shape(), 0.0)
    flight.first_token(0.1)
    flight.progress(3, 0.2)
    flight.end(ending, 0.3)
    flight.end(ending, 0.4)
    assert {} == core.in_flight()
    assert {"a": 1} == core.sent("n-a")


def test_a_tried_replica_is_not_picked_again() -> None:
    core = dispatcher(replica("a"), replica("b"))
    assert "b" == core.pick(shape(), exclude={"a"}, now=0.0).replica
    assert Verdict.NONE is core.pick(shape(), exclude={"a", "b"}, now=0.0).verdict


def test_a_loading_model_is_held_and_a_sleeping_one_is_woken() -> None:
    assert Verdict.HOLD is dispatcher(replica("a", ModelState.LOADING)).pick(shape(), now=0.0).verdict
    woken = dispatcher(replica("a", ModelState.ON_DISK), replica("b", ModelState.SLEEPING)).pick(shape(), now=0.0)
    assert (Verdict.WAKE, "b") == (woken.verdict, woken.replica)


def test_a_report_moves_requests_away_from_a_busy_replica() -> None:
    core = dispatcher(replica("a"), replica("b"))
    core.report(LoadReport(node="n-a", epoch=1, sequence=1, replicas=(ReplicaLoad(replica="a", running=30),)), 0.0)
    assert "b" == send(core).replica


def test_an_adapter_is_served_by_replicas_of_its_base() -> None:
    core = dispatcher(replica("a"), models=(ModelPolicy(model="lora", adapter_of="m"),))
    assert "a" == core.pick(shape("lora"), now=0.0).replica

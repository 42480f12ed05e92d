"""What a router believes of the fleet, from the registry's entries."""

from __future__ import annotations

from router.core.model import Fleet
from router.fleet.view import Beliefs, View, gone_since, served_models
from wire.records import ModelPolicy, ModelState, Node, Record, Replica, Router, Tenant, encode, key
from wire.registry import Change, Entry

NODE = Node(node="n1", region="eu", address="h:1")
REPLICA = Replica(replica="n1.0", node="n1", region="eu", model="m", address="h:2", state=ModelState.READY)


def entries(*records: Record) -> dict[str, bytes]:
    return {key(r): encode(r) for r in records}


def test_a_view_holds_the_nodes_and_replicas_of_its_own_region_and_the_tenants_of_all() -> None:
    beliefs = Beliefs("eu")
    elsewhere = Replica(replica="n9.0", node="n9", region="us", model="m", address="h:3")
    beliefs.replace(
        7, entries(NODE, REPLICA, elsewhere, Tenant(tenant="acme"), Router(router="r", region="us", url=""))
    )
    view = beliefs.view()
    assert (["n1"], ["n1.0"], ["acme"], 7, 1) == (
        list(view.fleet.nodes),
        list(view.fleet.replicas),
        list(view.fleet.tenants),
        view.fleet.revision,
        view.fleet.routers,
    )


def test_a_record_that_cannot_be_read_is_left_out_and_named_and_the_rest_serves() -> None:
    beliefs = Beliefs("eu")
    newer = encode(REPLICA).replace(b'{"', b'{"v":99,"', 1)
    beliefs.replace(1, {**entries(NODE), key(REPLICA): newer, "/switchyard/v1/nodes/eu/n2": b"{"})
    assert {"/switchyard/v1/nodes/eu/n2", key(REPLICA)} == set(beliefs.unreadable)
    assert ["n1"] == list(beliefs.view().fleet.nodes)
    beliefs.apply(2, (Change(key(REPLICA), Entry(key(REPLICA), encode(REPLICA), 2)),))
    assert (["n1.0"], 1) == (list(beliefs.view().fleet.replicas), len(beliefs.unreadable))


def test_deleted_records_leave_the_view() -> None:
    beliefs = Beliefs("eu")
    beliefs.replace(1, entries(NODE, REPLICA))
    beliefs.apply(2, (Change(key(REPLICA), None),))
    assert {} == beliefs.view().fleet.replicas


def test_models_are_those_of_replicas_in_any_state_and_adapters_that_policies_add() -> None:
    fleet = Fleet(
        replicas={"a": Replica(replica="a", node="n", region="eu", model="m", address="h:1", adapters=("l1",))},
        models={m.model: m for m in (ModelPolicy(model="l2", adapter_of="m"), ModelPolicy(model="l3", adapter_of="x"))},
    )
    assert {"m", "l1", "l2"} == served_models(fleet)


def test_a_model_whose_last_replica_vanished_is_remembered_as_gone_for_ten_minutes() -> None:
    there, empty = View(models=frozenset({"m", "n"})), View(models=frozenset({"n"}))
    gone = View(models=empty.models, gone=gone_since(empty, there, now=100.0))
    assert {"m": 100.0} == gone.gone
    assert {"m": 100.0} == gone_since(empty, gone, now=699.0)
    assert {} == gone_since(empty, gone, now=700.0)
    assert {} == gone_since(there, gone, now=101.0)

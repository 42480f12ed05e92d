"""Nodes that the registry forgot are believed in as long as their agents answer, and not for ever."""

from __future__ import annotations

import msgspec

from router.core.model import Fleet
from router.fleet.forgotten import LIMIT_S, Forgotten
from wire.records import ModelState, Node, Replica

NODE = Node(node="n1", region="eu", address="h:1")
OTHER = Node(node="n2", region="eu", address="h:3")
REPLICA = Replica(replica="n1.0", node="n1", region="eu", model="m", address="h:2", state=ModelState.READY)
BEFORE = Fleet(nodes={"n1": NODE, "n2": OTHER}, replicas={"n1.0": REPLICA})


def names(fleet: Fleet) -> tuple[list[str], list[str]]:
    return list(fleet.nodes), list(fleet.replicas)


def test_of_a_fleet_that_vanished_the_nodes_whose_agents_answer_stay() -> None:
    assert (["n1"], ["n1.0"]) == names(Forgotten().restored(Fleet(), BEFORE, {"n1"}, now=0.0))
    assert ([], []) == names(Forgotten().restored(Fleet(), BEFORE, set(), now=0.0))


def test_a_node_that_left_while_draining_is_gone_at_once() -> None:
    draining = msgspec.structs.replace(NODE, draining=True)
    before = Fleet(nodes={"n1": draining}, replicas={"n1.0": REPLICA})
    assert ([], []) == names(Forgotten().restored(Fleet(), before, {"n1"}, now=0.0))


def test_a_node_that_does_not_come_back_is_given_up_when_its_time_is_over() -> None:
    forgotten = Forgotten()
    held = forgotten.restored(Fleet(), BEFORE, {"n1"}, now=100.0)
    assert LIMIT_S == forgotten.patience_s(100.0)
    held = forgotten.restored(Fleet(), held, {"n1"}, now=100.0 + LIMIT_S - 1)
    assert ["n1"] == list(held.nodes)
    assert ([], []) == names(forgotten.restored(Fleet(), held, {"n1"}, now=100.0 + LIMIT_S))
    assert (0, None) == (len(forgotten), forgotten.patience_s(200.0))


def test_a_node_that_registered_again_is_taken_as_it_is_now_and_may_be_forgotten_anew() -> None:
    forgotten = Forgotten()
    held = forgotten.restored(Fleet(), BEFORE, {"n1"}, now=0.0)
    back = Fleet(nodes={"n1": NODE})
    assert back is forgotten.restored(back, held, {"n1"}, now=10.0)
    assert ["n1"] == list(forgotten.restored(Fleet(), back, {"n1"}, now=20.0).nodes)
    assert LIMIT_S == forgotten.patience_s(20.0)


def test_replicas_that_registered_before_their_node_are_newer_than_what_was_held() -> None:
    loading = msgspec.structs.replace(REPLICA, state=ModelState.LOADING)
    forgotten = Forgotten()
    held = forgotten.restored(Fleet(replicas={"n1.0": loading}), BEFORE, {"n1"}, now=0.0)
    assert loading is held.replicas["n1.0"]


def test_what_is_known_of_other_nodes_is_left_as_it_is() -> None:
    fleet = Fleet(nodes={"n2": OTHER})
    assert ["n1", "n2"] == sorted(Forgotten().restored(fleet, BEFORE, {"n1", "n2"}, now=0.0).nodes)

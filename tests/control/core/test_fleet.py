from control.core.fleet import Fleet, find_node, find_replica, model_rows, node_rows
from wire.records import ModelPolicy, ModelState, Node, Record, Replica, Router, encode, key

NODE = Node(node="node-1", region="local", address="10.0.0.1:7000", device_class="h100", started_unix_ns=1_000_000_000)


def replica(name: str, state: ModelState, *, model: str = "m", generation: int = 1) -> Replica:
    return Replica(
        replica=name,
        node="node-1",
        region="local",
        model=model,
        address="10.0.0.1:1",
        state=state,
        generation=generation,
    )


def fleet_of(*records: Record) -> Fleet:
    fleet = Fleet()
    fleet.replace({key(r): encode(r) for r in records})
    return fleet


def test_a_node_is_shown_with_its_replicas_models_and_age() -> None:
    fleet = fleet_of(NODE, replica("a", ModelState.READY), replica("b", ModelState.LOADING, model="e"))
    (row,) = node_rows(fleet, now_unix_ns=61_000_000_000)
    assert ("node-1", "ready", "1 ready, 1 loading", ("e", "m")) == (row.node, row.state, row.replicas, row.models)
    assert 60.0 == row.age_s


def test_a_draining_node_says_so_and_one_without_replicas_has_none() -> None:
    (row,) = node_rows(fleet_of(Node(node="n", region="r", address="a:1", draining=True)), now_unix_ns=0)
    assert ("draining", "none", -1.0) == (row.state, row.replicas, row.age_s)


def test_a_model_is_shown_whether_a_replica_serves_it_or_only_a_policy_names_it() -> None:
    fleet = fleet_of(NODE, replica("a", ModelState.READY), ModelPolicy(model="cold", fallback="m"))
    assert [("cold", "none", "m"), ("m", "1 ready", "")] == [
        (r.model, r.replicas, r.fallback) for r in model_rows(fleet)
    ]


def test_an_adapter_is_served_by_the_replicas_of_its_base_model() -> None:
    fleet = fleet_of(replica("a", ModelState.READY), ModelPolicy(model="lora", adapter_of="m"))
    assert {"lora": "1 ready", "m": "1 ready"} == {r.model: r.replicas for r in model_rows(fleet)}


def test_a_replica_is_found_with_the_node_that_commands_it() -> None:
    fleet = fleet_of(NODE, replica("a", ModelState.READY))
    found = find_replica(fleet, "a")
    assert found is not None
    assert "10.0.0.1:7000" == found[1].address
    assert find_replica(fleet, "b") is None
    assert find_replica(fleet_of(replica("a", ModelState.READY)), "a") is None
    assert NODE == find_node(fleet, "node-1")


def test_changes_are_told_in_sentences_and_repeats_are_not_told() -> None:
    fleet = fleet_of(NODE)
    loading, ready = replica("a", ModelState.LOADING), replica("a", ModelState.READY)
    assert "replica a (m) is loading" == fleet.set(key(loading), encode(loading))
    assert "replica a (m) was loading, is ready" == fleet.set(key(ready), encode(ready))
    assert "" == fleet.set(key(ready), encode(ready))
    again = replica("a", ModelState.READY, generation=2)
    assert "replica a (m) is ready, generation 2" == fleet.set(key(again), encode(again))
    assert "replica a (m) is gone" == fleet.remove(key(again))
    assert "" == fleet.remove(key(again))


def test_a_snapshot_tells_what_it_no_longer_holds() -> None:
    router = Router(router="r", region="local", url="http://r")
    fleet = fleet_of(NODE, router)
    assert ["node node-1 is gone: its agent left or has not spoken for a lease time"] == fleet.replace(
        {key(router): encode(router)}
    )


def test_an_unreadable_record_is_told_once_and_hides_nothing() -> None:
    fleet = fleet_of(NODE)
    where = "/switchyard/v1/nodes/local/node-2"
    assert "is skipped" in fleet.set(where, b"{}")
    assert "" == fleet.set(where, b"{}")
    assert [where] == list(fleet.unreadable)
    assert [NODE] == fleet.of(Node)
    good = Node(node="node-2", region="local", address="a:1")
    fleet.set(where, encode(good))
    assert {} == fleet.unreadable


def test_keys_that_are_not_ours_are_left_alone() -> None:
    fleet = Fleet()
    assert "" == fleet.set("/somebody/else", b"x")
    assert {} == fleet.records

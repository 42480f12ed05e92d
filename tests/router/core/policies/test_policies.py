from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from router.core.model import Ending, Verdict
from router.core.policies import DEFAULT, POLICIES
from router.core.policies.published import CacheAware
from tests.router.core.fleets import dispatcher, load, replica, report, shape
from wire.records import ROUTING, ModelPolicy, ModelState


def policy(name: str) -> tuple[ModelPolicy, ...]:
    return (ModelPolicy(model="m", routing=name),)


def test_the_names_that_people_may_write_are_those_that_there_are() -> None:
    assert sorted(ROUTING) == sorted(POLICIES)
    assert ROUTING[0] == ModelPolicy(model="m").routing == DEFAULT


@pytest.mark.parametrize("name", list(POLICIES))
def test_every_policy_sends_to_ready_replicas_only_and_loads_when_there_are_none(name: str) -> None:
    replicas = [replica("a"), replica("b"), replica("s", ModelState.SLEEPING), replica("f", ModelState.FAILED)]
    core = dispatcher(*replicas, models=policy(name))
    decisions = [core.pick(shape(), now=0.0) for _ in range(50)]
    assert {Verdict.SEND} == {d.verdict for d in decisions}
    assert {"a", "b"} >= {d.replica for d in decisions}
    assert {name} == {d.policy for d in decisions}
    assert "b" == core.pick(shape(), exclude={"a"}, now=0.0).replica
    assert Verdict.WAKE is core.pick(shape(), exclude={"a", "b"}, now=0.0).verdict
    assert Verdict.NONE is core.pick(shape(), exclude={"a", "b", "s"}, now=0.0).verdict


def test_an_unknown_policy_is_the_default() -> None:
    assert "expected_time" == dispatcher(replica("a"), models=policy("expected_tme")).pick(shape(), now=0.0).policy


def test_random_uses_all() -> None:
    core = dispatcher(*(replica(name) for name in "abcd"), models=policy("random"))
    assert 4 == len({core.pick(shape(), now=0.0).replica for _ in range(100)})


def test_round_robin_goes_round() -> None:
    core = dispatcher(*(replica(name) for name in "abc"), models=policy("round_robin"))
    assert list("abcabc") == [core.pick(shape(), now=0.0).replica for _ in range(6)]


@pytest.mark.parametrize("name", ["least_in_flight", "p2c", "lmetric"])
def test_policies_that_count_requests_spread_them(name: str) -> None:
    core = dispatcher(*(replica(r) for r in "abcd"), models=policy(name))
    for index in range(40):
        asked = shape(prompt=bytes([index]) * 600)
        core.begin(core.pick(asked, now=0.0), asked, 0.0)
    counts = core.in_flight().values()
    assert max(counts) - min(counts) <= 4


def test_peak_ewma_avoids_a_replica_that_answered_slowly() -> None:
    core = dispatcher(replica("a"), replica("b"), models=policy("peak_ewma_p2c"))
    for name, took in (("a", 5.0), ("b", 0.1)):
        for _ in range(3):
            decision = core.pick(shape(), exclude={"a", "b"} - {name}, now=0.0)
            flight = core.begin(decision, shape(), 0.0)
            flight.first_token(took)
            flight.end(Ending.COMPLETE, took)
    assert {"b"} == {core.pick(shape(), now=20.0).replica for _ in range(10)}


@pytest.mark.parametrize("name", ["sglang_cache_aware", "llmd_weights", "lmetric"])
def test_policies_that_know_prefixes_go_back_to_them(name: str) -> None:
    core = dispatcher(*(replica(r) for r in "abcd"), models=policy(name))
    asked = shape(prompt=bytes(64) * 256)
    decision = core.pick(asked, now=0.0)
    core.begin(decision, asked, 0.0).end(Ending.COMPLETE, 0.1)
    assert {decision.replica} == {core.pick(asked, now=1.0).replica for _ in range(10)}


def test_cache_aware_leaves_the_prefix_when_out_of_balance() -> None:
    core = dispatcher(replica("a"), replica("b"), models=policy("sglang_cache_aware"))
    core._policies["m", "sglang_cache_aware"] = CacheAware(absolute=2.0)
    asked = shape(prompt=bytes(64) * 256)
    picked = []
    for _ in range(12):
        decision = core.pick(asked, now=0.0)
        core.begin(decision, asked, 0.0)
        picked.append(decision.replica)
    assert 3 == picked.count(picked[0]) or 2 < Counter(picked)[picked[0]] < 12
    assert 2 == len(set(picked))


def test_llmd_weights_leave_full_queues_and_full_memory() -> None:
    core = dispatcher(replica("a"), replica("b"), models=policy("llmd_weights"))
    core.report(report(load("a", waiting=5, kv_use=0.9, kv_capacity_tokens=1000, running=9)), 0.0)
    core.report(report(load("b")), 0.0)
    assert {"b"} == {core.pick(shape(), now=0.0).replica for _ in range(5)}


def test_random_draws_are_without_replacement() -> None:
    core = dispatcher(replica("a"), replica("b"), models=policy("p2c"))
    core.begin(core.pick(shape(), now=0.0), shape(), 0.0)
    busy = next(iter(core.in_flight()))
    assert busy not in {core.pick(shape(), now=0.0).replica for _ in range(50)}
    assert np.isfinite(core.pick(shape(), now=0.0).expected_ttft_ms)

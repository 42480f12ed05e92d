from __future__ import annotations

import random

import pytest

from router.core.constants import Constants
from router.core.dispatch import CoreDispatcher
from router.core.model import Decision, Ending, Flight, Shape, Verdict
from tests.router.core.fleets import dispatcher, fleet, load, replica, report, shape
from wire.records import ModelPolicy, ModelState, Task


def send(core: CoreDispatcher, asked: Shape | None = None, *, now: float = 0.0) -> tuple[Decision, Flight]:
    asked = asked or shape()
    decision = core.pick(asked, now=now)
    assert Verdict.SEND is decision.verdict
    return decision, core.begin(decision, asked, now)


def test_an_unknown_model_is_told_apart_from_one_without_replicas() -> None:
    core = dispatcher(replica("a", ModelState.FAILED), models=(ModelPolicy(model="known"),))
    assert Verdict.UNKNOWN_MODEL is core.pick(shape("nobody"), now=0.0).verdict
    assert Verdict.NONE is core.pick(shape("known"), now=0.0).verdict
    nobody = core.pick(shape("m"), now=0.0)
    assert (Verdict.NONE, 5.0) == (nobody.verdict, nobody.retry_after_s)
    assert "failed" in nobody.reason
    assert [] == core.explain(shape("nobody"), now=0.0)


def test_requests_spread_over_equal_replicas() -> None:
    core = dispatcher(replica("a"), replica("b"), replica("c"))
    for index in range(9):
        send(core, shape(prompt=bytes([index]) * 16_384))
    assert {"a": 3, "b": 3, "c": 3} == core.in_flight()


@pytest.mark.parametrize("ending", list(Ending))
@pytest.mark.parametrize("started", [False, True])
def test_every_ending_takes_the_request_off_the_counts_once(ending: Ending, started: bool) -> None:
    core = dispatcher(replica("a"))
    _, flight = send(core)
    if started:
        flight.first_token(0.1)
        flight.first_token(0.1)
        flight.progress(3, 0.2)
        flight.progress(0, 0.2)
    flight.end(ending, 0.3)
    flight.end(ending, 0.4)
    flight.first_token(0.5)
    flight.progress(3, 0.6)
    assert {} == core.in_flight()
    assert {"a": 1} == core.sent("n-a")
    assert {} == core.sent("n-nowhere")


def test_a_tried_replica_is_not_picked_again() -> None:
    core = dispatcher(replica("a"), replica("b"))
    assert "b" == core.pick(shape(), exclude={"a"}, now=0.0).replica
    nobody = core.pick(shape(), exclude={"a", "b"}, now=0.0)
    assert Verdict.NONE is nobody.verdict
    assert "tried already" in nobody.reason


def test_only_a_decision_to_send_can_be_begun() -> None:
    core = dispatcher(replica("a"))
    with pytest.raises(TypeError):
        core.begin(Decision(verdict=Verdict.NONE), shape(), 0.0)


def test_a_prompt_goes_back_to_where_its_beginning_is_cached() -> None:
    core = dispatcher(*(replica(name) for name in "abcdef"))
    long = shape(prompt=bytes(64) * 1024)
    first, flight = send(core, long)
    flight.first_token(0.1)
    flight.end(Ending.COMPLETE, 0.2, prompt_tokens=16_384, cached_tokens=0, output_tokens=5)
    for now in range(1, 8):
        again = core.pick(shape(prompt=bytes(long.prompt) + b"more"), now=float(now))
        assert first.replica == again.replica
        assert again.uncached_tokens < 100


def test_a_busy_holder_of_the_prefix_is_left_for_an_idle_replica() -> None:
    core = dispatcher(replica("a"), replica("b"))
    asked = shape(prompt=bytes(32) * 1024)
    first, flight = send(core, asked)
    flight.first_token(0.3)
    flight.end(Ending.COMPLETE, 0.4)
    core.report(report(load(first.replica, waiting=9, waiting_uncached_tokens=60_000.0, seen=1)), 0.5)
    assert first.replica != core.pick(asked, now=0.5).replica


def test_a_restart_forgets_the_cache_and_the_failures() -> None:
    core = dispatcher(replica("a"), replica("b"))
    asked = shape(prompt=bytes(64) * 1024)
    first, flight = send(core, asked)
    flight.end(Ending.FAILED, 0.1)
    core.report(report(load(first.replica, generation=2)), 0.2)
    terms = {c.replica: c.terms for c in core.explain(asked, now=0.2)}
    assert terms["a"]["prefill"] == terms["b"]["prefill"]
    assert "health" not in terms[first.replica]


def test_a_record_of_a_new_generation_restarts_too_and_old_reports_are_ignored() -> None:
    core = dispatcher(replica("a"))
    core.apply(fleet(replica("a", generation=3)), 1.0)
    core.report(report(load("a", generation=2, state=ModelState.FAILED)), 1.0)
    assert Verdict.SEND is core.pick(shape(), now=1.0).verdict


def test_reports_out_of_order_are_dropped_until_the_agent_starts_anew() -> None:
    core = dispatcher(replica("a"))
    core.report(report(load("a"), sequence=5), 0.1)
    core.report(report(load("a", state=ModelState.FAILED), sequence=4), 0.2)
    assert Verdict.SEND is core.pick(shape(), now=0.2).verdict
    core.report(report(load("a", state=ModelState.FAILED), sequence=1, epoch=2), 0.3)
    assert Verdict.NONE is core.pick(shape(), now=0.3).verdict


def test_reports_of_unknown_nodes_and_replicas_are_ignored() -> None:
    core = dispatcher(replica("a"))
    core.report(report(load("x")), 0.1)
    core.report(report(load("x"), node="n-a"), 0.1)
    core.node_lost("n-x", 0.1)
    core.observe_rtt("n-x", 0.1)
    assert Verdict.SEND is core.pick(shape(), now=0.2).verdict


def test_a_silent_agent_makes_its_node_suspect_and_not_dead() -> None:
    core = dispatcher(replica("a"), replica("b"))
    for name in "ab":
        core.report(report(load(name)), 0.0)
    core.node_lost("n-a", 0.1)
    assert {"b"} == {core.pick(shape(), now=0.1).replica for _ in range(10)}
    assert Verdict.SEND is core.pick(shape(), exclude={"b"}, now=100.0).verdict
    core.report(report(load("a")), 100.0)
    assert {"a"} == {core.pick(shape(), now=100.0).replica for _ in range(10)}


def test_a_frozen_engine_is_charged_its_silence() -> None:
    core = dispatcher(replica("a"), replica("b"))
    core.report(report(load("a", idle_s=5.0, running=1)), 0.0)
    core.report(report(load("b", running=1)), 0.0)
    assert {"b"} == {core.pick(shape(), now=0.0).replica for _ in range(10)}


def health_ms(core: CoreDispatcher, name: str, now: float) -> float:
    return {c.replica: c.terms.get("health", 0.0) for c in core.explain(shape(), now=now)}[name]


def test_an_engine_that_does_not_answer_its_agents_scrapes_is_charged_the_time() -> None:
    core = dispatcher(replica("a"))
    core.report(report(load("a", scraped_age_s=1.0, running=1)), 0.0)
    suspect_ms = Constants().suspect_ms
    assert suspect_ms == health_ms(core, "a", 0.0)
    core.report(report(load("a", scraped_age_s=9.0, running=1), sequence=2), 0.1)
    assert suspect_ms + 9000.0 == health_ms(core, "a", 0.1)


def test_an_idle_engine_is_scraped_once_a_second_and_not_suspected_while_its_agent_speaks() -> None:
    core = dispatcher(replica("a"))
    core.report(report(load("a", scraped_age_s=1.0)), 0.0)
    assert 0.0 == health_ms(core, "a", 0.0)
    assert 0.0 == health_ms(core, "a", 0.75)
    assert Constants().suspect_ms == health_ms(core, "a", 0.8)


def test_what_stood_still_before_its_agent_fell_silent_is_charged_for_both() -> None:
    core = dispatcher(replica("a"))
    core.report(report(load("a", idle_s=5.0, running=1)), 0.0)
    assert 5000.0 == health_ms(core, "a", 0.0)
    core.node_lost("n-a", 0.1)
    assert 5000.0 + Constants().suspect_ms == health_ms(core, "a", 0.1)


def test_of_two_equally_fast_replicas_the_one_takes_a_prompt_where_it_interrupts_fewer_answers() -> None:
    core = dispatcher(replica("a"), replica("b"))
    core.report(report(load("a", running=40)), 0.0)
    core.report(report(load("b", running=4)), 0.0)
    assert {"b"} == {core.pick(shape(prompt=bytes(8000)), now=0.0).replica for _ in range(10)}
    others = {c.replica: c.terms["others"] for c in core.explain(shape(prompt=bytes(8000)), now=0.0)}
    assert 10.0 == pytest.approx(others["a"] / others["b"])


def test_without_that_weight_only_the_time_of_the_request_itself_counts() -> None:
    core = dispatcher(replica("a"), constants=Constants(harm_weight=0.0))
    core.report(report(load("a", running=40)), 0.0)
    assert "others" not in core.explain(shape(), now=0.0)[0].terms


def test_a_request_that_waits_too_long_tells_on_its_node_before_it_ends() -> None:
    core = dispatcher(replica("a"), replica("b"))
    decision, _ = send(core)
    other = {"a": "b", "b": "a"}[decision.replica]
    for now in (5.0, 6.0, 7.0):
        assert other == core.pick(shape(), now=now).replica


def test_a_slow_node_is_learned_and_avoided() -> None:
    core = dispatcher(replica("a"), replica("b"))
    now = 0.0
    sent = {"a": 0, "b": 0}
    for index in range(60):
        asked = shape(prompt=bytes([index]) * 8000)
        decision, flight = send(core, asked, now=now)
        took = 0.2 if decision.replica == "b" else 1.6
        flight.first_token(now + took)
        flight.end(Ending.COMPLETE, now + took, prompt_tokens=2000)
        sent[decision.replica] += 1
        now += 2.0
    assert sent["b"] > 3 * sent["a"]


def test_a_request_cancelled_while_it_waits_leaves_its_waiting_as_evidence() -> None:
    core = dispatcher(replica("a"), replica("b"))
    decision, flight = send(core)
    flight.end(Ending.CANCELLED, 10.0)
    assert decision.replica != core.pick(shape(), now=10.0).replica


def test_a_failing_replica_is_ejected_and_the_last_one_is_still_tried() -> None:
    core = dispatcher(replica("a"), replica("b"), replica("c"))

    def fail(name: str) -> None:
        others = {"a", "b", "c"} - {name}
        for _ in range(5):
            decision = core.pick(shape(), exclude=others, now=0.0)
            core.begin(decision, shape(), 0.0).end(Ending.FAILED, 0.0)

    fail("a")
    assert "a" not in {core.pick(shape(), now=0.0).replica for _ in range(20)}
    assert "ejected after failures" == {c.replica: c.excluded for c in core.explain(shape(), now=0.0)}["a"]
    assert "a" == core.pick(shape(), exclude={"b", "c"}, now=0.0).replica
    fail("b")
    fail("c")
    assert Verdict.SEND is core.pick(shape(), now=0.0).verdict


def test_on_probation_one_request_at_a_time() -> None:
    core = dispatcher(replica("a"), replica("b"), replica("c"))
    for _ in range(5):
        core.begin(core.pick(shape(), exclude={"b", "c"}, now=0.0), shape(), 0.0).end(Ending.FAILED, 0.0)
    core.begin(core.pick(shape(), exclude={"b", "c"}, now=200.0), shape(), 200.0)
    assert (
        "on probation, with its one request under way"
        == ({c.replica: c.excluded for c in core.explain(shape(), now=200.0)}["a"])
    )


def test_a_draining_node_or_replica_gets_nothing_new() -> None:
    core = CoreDispatcher(rng=random.Random(1))
    core.apply(fleet(replica("a"), replica("b", ModelState.DRAINING), replica("c"), draining=("n-a",)), 0.0)
    assert {"c"} == {core.pick(shape(), now=0.0).replica for _ in range(10)}
    reasons = {c.replica: c.excluded for c in core.explain(shape(), now=0.0)}
    assert {"a": "its node drains", "b": "draining", "c": ""} == reasons


def test_embeddings_and_chat_have_replicas_of_their_own() -> None:
    core = dispatcher(replica("a"), replica("e", task=Task.EMBED))
    assert "a" == core.pick(shape(), now=0.0).replica
    assert "e" == core.pick(shape(embedding=True), now=0.0).replica
    alone = dispatcher(replica("a"))
    misfit = alone.pick(shape(embedding=True), now=0.0)
    assert (Verdict.MISFIT, "'m' serves chat or completions, not embeddings") == (misfit.verdict, misfit.reason)
    pooling = dispatcher(replica("e", task=Task.EMBED))
    assert "'m' serves embeddings, not chat or completions" == pooling.pick(shape(), now=0.0).reason


def test_an_adapter_is_served_by_replicas_of_its_base_that_have_it() -> None:
    core = dispatcher(replica("a", adapters=("lora",)), replica("b", adapters=("other",)), replica("c"))
    assert {"a", "c"} == {core.pick(shape("lora"), now=0.0).replica for _ in range(40)}
    core.report(report(load("c", adapters=("lora",))), 0.1)
    assert {"c"} == {core.pick(shape("lora"), now=0.1).replica for _ in range(20)}
    terms = {c.replica: c for c in core.explain(shape("lora"), now=0.1)}
    assert 400.0 == terms["a"].terms["adapter"]
    assert "cannot serve the model" == terms["b"].excluded
    alone = dispatcher(replica("b", adapters=("other",)), models=(ModelPolicy(model="lora", adapter_of="m"),))
    assert "none has the adapter" in alone.pick(shape("lora"), now=0.0).reason


def test_an_adapter_named_only_by_policy_is_served_by_a_base_that_names_none() -> None:
    core = dispatcher(replica("a"), models=(ModelPolicy(model="lora", adapter_of="m"),))
    assert "a" == core.pick(shape("lora"), now=0.0).replica


def test_engines_on_one_gpu_slow_each_other_down() -> None:
    here, there = replica("a", node="n1"), replica("b", node="n2")
    core = dispatcher(here, there, replica("x", node="n1", model="other"))
    core.report(report(load("x", running=8, waiting=4, waiting_uncached_tokens=50_000.0), node="n1"), 0.0)
    assert {"b"} == {core.pick(shape(), now=0.0).replica for _ in range(10)}


def test_a_replica_that_leaves_keeps_its_requests_counted_and_its_number_of_sends() -> None:
    core = dispatcher(replica("a"), replica("b"))
    decision, flight = send(core)
    _, other = send(core)
    core.apply(fleet(), 1.0)
    assert 2 == sum(core.in_flight().values())
    flight.first_token(1.5)
    flight.progress(1, 1.6)
    core.apply(fleet(replica("a"), replica("b")), 2.0)
    flight.end(Ending.COMPLETE, 2.5)
    other.end(Ending.COMPLETE, 2.5)
    assert {} == core.in_flight()
    assert 1 == core.sent(f"n-{decision.replica}")[decision.replica]


def test_a_replica_that_moves_to_another_model_is_another_replica() -> None:
    core = dispatcher(replica("a"), replica("b"))
    core.apply(fleet(replica("a", model="new"), replica("b")), 1.0)
    assert "a" == core.pick(shape("new"), now=1.0).replica
    assert "b" == core.pick(shape(), now=1.0).replica


def test_a_replica_that_joins_starts_slowly() -> None:
    core = dispatcher(replica("a"), replica("b"))
    core.apply(fleet(replica("a"), replica("b"), replica("c")), 100.0)
    terms = {c.replica: c.terms for c in core.explain(shape(), now=101.0)}
    assert terms["c"]["slow_start"] > 0.0
    assert "slow_start" not in terms["a"]
    later = {c.replica: c.terms for c in core.explain(shape(), now=131.0)}
    assert "slow_start" not in later["c"]


def test_with_a_deadline_those_that_meet_it_come_first() -> None:
    core = dispatcher(replica("a"), replica("b"))
    core.report(report(load("a", waiting_uncached_tokens=20_000.0, waiting=3)), 0.0)
    assert "b" == core.pick(shape(deadline=0.4), now=0.0).replica
    assert "b" == core.pick(shape(deadline=0.001), now=0.0).replica


def test_now_and_then_the_second_best_is_tried() -> None:
    core = dispatcher(replica("a"), replica("b"), constants=Constants(explore=0.5, tie_ms=0.0, tie_fraction=0.0))
    core.report(report(load("a", waiting_uncached_tokens=1000.0, waiting=1)), 0.0)
    picked = [core.pick(shape(), now=0.0) for _ in range(100)]
    assert {"a": True, "b": False} == {d.replica: d.explored for d in picked}
    assert 30 < sum(d.explored for d in picked) < 70
    core.report(report(load("a", waiting_uncached_tokens=900_000.0, waiting=1), sequence=2), 0.0)
    assert {"b"} == {core.pick(shape(), now=0.0).replica for _ in range(30)}


def test_a_measured_round_trip_counts() -> None:
    core = dispatcher(replica("a"), replica("b"))
    for _ in range(50):
        core.observe_rtt("n-a", 0.2)
    core.report(report(load("a")), 0.0)
    core.report(report(load("b")), 0.0)
    assert {"b"} == {core.pick(shape(), now=0.0).replica for _ in range(10)}


def test_learned_token_counts_change_what_is_expected() -> None:
    core = dispatcher(replica("a"))
    for now in range(300):
        _, flight = send(core, shape(prompt=b"y" * 1000), now=float(now))
        flight.first_token(now + 0.05)
        flight.end(Ending.COMPLETE, now + 0.1, prompt_tokens=500, cached_tokens=0, output_tokens=7)
    decision = core.pick(shape(prompt=b"y" * 1000), now=300.0)
    assert 480 < decision.prompt_tokens <= 500
    assert decision.uncached_tokens > 450
    assert 300 == core.accuracy()["m"].observations


def test_very_many_replicas_are_not_all_looked_at() -> None:
    constants = Constants(scan_limit=20, explore=0.0)
    core = dispatcher(*(replica(f"r{n}") for n in range(60)), constants=constants)
    held, flight = send(core, shape(prompt=bytes(64) * 1024))
    flight.first_token(0.1)
    flight.end(Ending.COMPLETE, 0.1)
    again = core.pick(shape(prompt=bytes(64) * 1024 + b"more"), now=1.0)
    assert held.replica == again.replica
    assert again.uncached_tokens < 100
    for n in range(60):
        if n != 7:
            core.report(report(load(f"r{n}", waiting=2, waiting_uncached_tokens=5e4, state=ModelState.READY)), 1.0)
    assert "r7" == core.pick(shape(), now=1.0).replica
    assert "r7" != core.pick(shape(), exclude={"r7"}, now=1.0).replica
    lora = core.pick(shape("m"), now=1.0)
    assert Verdict.SEND is lora.verdict


def test_an_adapter_is_found_among_very_many_replicas() -> None:
    constants = Constants(scan_limit=10, explore=0.0)
    core = dispatcher(*(replica(f"r{n}", adapters=("lora",)) for n in range(40)), constants=constants)
    assert Verdict.SEND is core.pick(shape("lora"), now=0.0).verdict


def test_other_policies_know_too_who_serves_an_adapter() -> None:
    models = (ModelPolicy(model="lora", routing="round_robin"),)
    core = dispatcher(replica("a"), replica("b", adapters=("other",)), replica("c", adapters=("lora",)), models=models)
    assert {"a", "c"} == {core.pick(shape("lora"), now=0.0).replica for _ in range(8)}


def test_rows_of_replicas_that_left_are_used_again() -> None:
    core = dispatcher(*(replica(f"r{n}") for n in range(20)))
    core.apply(fleet(*(replica(f"r{n}") for n in range(5, 20))), 1.0)
    assert 15 == len(core.explain(shape(), now=1.0))
    core.apply(fleet(*(replica(f"r{n}") for n in range(5, 24))), 2.0)
    assert {f"r{n}" for n in range(5, 24)} == {c.replica for c in core.explain(shape(), now=2.0)}
    assert 20 == len(core._belief.groups["m", False])


def test_prefix_indexes_stay_under_their_common_limit() -> None:
    constants = Constants(prefix_blocks_total=600, explore=0.0)
    core = dispatcher(replica("a"), replica("b", model="other"), constants=constants)
    for n in range(400):
        for model in ("m", "other"):
            _, flight = send(core, shape(model, prompt=n.to_bytes(4, "big") * 512))
            flight.end(Ending.COMPLETE, 0.0)
    slack = 64 * 8
    assert sum(len(g.index) for g in core._belief.groups.values()) <= 600 + slack


def test_a_long_prompt_is_kept_away_from_full_memory() -> None:
    core = dispatcher(replica("a"), replica("b"))
    core.report(report(load("a", kv_use=0.8, kv_capacity_tokens=100_000, running=1)), 0.0)
    core.report(report(load("b", kv_use=0.2, kv_capacity_tokens=100_000, running=1)), 0.0)
    for size in (400, 60_000):
        assert {"b"} == {core.pick(shape(prompt=bytes(size)), now=0.0).replica for _ in range(10)}


def test_departed_replicas_counts_are_bounded() -> None:
    core = dispatcher()
    core._belief._departed.update({f"gone{n}": n for n in range(10_000)})
    core.apply(fleet(replica("a")), 0.0)
    core.apply(fleet(), 1.0)
    assert 10_000 == len(core._belief._departed)


def test_a_replica_that_is_undrained_starts_slowly_and_teaches_no_load_time() -> None:
    core = dispatcher(replica("a", ModelState.DRAINING), replica("b"))
    core.apply(fleet(replica("a"), replica("b")), 100.0)
    terms = {c.replica: c.terms for c in core.explain(shape(), now=101.0)}
    assert terms["a"]["slow_start"] > 0.0


def test_where_all_replicas_are_new_none_looks_slower_than_it_is() -> None:
    core = dispatcher(replica("a", ModelState.SLEEPING), replica("b", ModelState.SLEEPING))
    core.apply(fleet(replica("a"), replica("b", ModelState.SLEEPING)), 100.0)
    terms = {c.replica: c.terms for c in core.explain(shape(), now=101.0)}
    assert "slow_start" not in terms["a"]
    core.apply(fleet(replica("a"), replica("b")), 110.0)
    terms = {c.replica: c.terms for c in core.explain(shape(), now=111.0)}
    assert "slow_start" not in terms["a"]
    assert terms["b"]["slow_start"] > 0.0
    core.apply(fleet(replica("a", ModelState.SLEEPING), replica("b")), 112.0)
    terms = {c.replica: c.terms for c in core.explain(shape(), now=112.5)}
    assert "slow_start" not in terms["b"]


def test_a_model_that_just_woke_with_a_queue_does_not_wake_its_next_replica_for_it() -> None:
    core = dispatcher(replica("a", ModelState.SLEEPING), replica("b", ModelState.SLEEPING))
    core.apply(fleet(replica("a"), replica("b", ModelState.SLEEPING)), 100.0)
    for _ in range(20):
        decision, _ = send(core, shape(prompt=bytes(8000)), now=100.0)
        assert "a" == decision.replica


def test_adapters_are_found_although_a_replica_left() -> None:
    core = dispatcher(replica("a", adapters=("lora",)), replica("b", adapters=("lora",)))
    core.apply(fleet(replica("b", adapters=("lora",))), 1.0)
    assert "b" == core.pick(shape("lora"), now=1.0).replica


def test_a_drained_replica_still_streams_and_its_pace_teaches_nothing() -> None:
    core = dispatcher(replica("a"))
    _, flight = send(core)
    flight.first_token(0.1)
    core.apply(fleet(replica("a", ModelState.DRAINING)), 0.2)
    flight.progress(10, 5.0)
    assert 1.0 == core._belief.replicas["a"].cost.decode


def test_the_pace_of_a_stream_is_learned() -> None:
    core = dispatcher(replica("a"))
    _, flight = send(core)
    flight.first_token(0.1)
    flight.progress(10, 5.0)
    assert core._belief.replicas["a"].cost.decode > 1.05
    twin = dispatcher(replica("a"))
    _, several = send(twin, shape(choices=2))
    several.first_token(0.1)
    several.progress(10, 5.0)
    assert 1.0 == twin._belief.replicas["a"].cost.decode


def test_among_very_many_replicas_the_holders_of_the_prefix_are_bounded() -> None:
    core = dispatcher(
        *(replica(f"r{n}") for n in range(50)), constants=Constants(scan_limit=10, holders=4, record_candidates=64)
    )
    asked = shape(prompt=bytes(64) * 64)
    everybody = {f"r{n}" for n in range(50)}
    for n in range(50):
        decision = core.pick(asked, exclude=everybody - {f"r{n}"}, now=0.0)
        if decision.verdict is Verdict.SEND:
            core.begin(decision, asked, 0.0).end(Ending.COMPLETE, 0.0)
    long, longer = (shape(prompt=bytes(asked.prompt) + bytes(size)) for size in (2048, 4096))
    for n in range(6):
        decision = core.pick(long, exclude=everybody - {f"r{n}"}, now=1.0)
        if decision.verdict is Verdict.SEND:
            core.begin(decision, long, 1.0).end(Ending.COMPLETE, 1.0)
    for _ in range(3):
        decision = core.pick(longer, now=1.0)
        core.begin(decision, longer, 1.0).end(Ending.COMPLETE, 1.0)
    assert core.pick(longer, now=2.0).uncached_tokens < 100
    assert len(core.why("r")[-1].candidates) <= Constants().scored


def test_a_prompt_that_nearly_all_of_many_hold_is_found_with_those_that_have_least_to_do() -> None:
    constants = Constants(scan_limit=10, explore=0.0, record_candidates=64)
    core = dispatcher(*(replica(f"r{n}") for n in range(40)), constants=constants)
    asked = shape(prompt=bytes(64) * 64)
    everybody = {f"r{n}" for n in range(40)}
    for n in range(40):
        decision = core.pick(asked, exclude=everybody - {f"r{n}"}, now=0.0)
        if decision.verdict is Verdict.SEND:
            core.begin(decision, asked, 0.0).end(Ending.COMPLETE, 0.0)
    for now in range(1, 200):
        core.begin(core.pick(asked, now=float(now)), asked, float(now)).end(Ending.COMPLETE, float(now))
    assert core.pick(asked, now=200.0).uncached_tokens < 100
    assert len(core.why("r")[-1].candidates) <= constants.shortlist + constants.strangers


def test_a_node_stays_while_one_of_its_replicas_does() -> None:
    core = dispatcher(replica("a", node="n1", device_class="cpu"), replica("b", node="n1", device_class="cpu"))
    core.apply(fleet(replica("b", node="n1", device_class="cpu")), 1.0)
    assert {"b": 0} == core.sent("n1")
    assert "b" == core.pick(shape(), now=1.0).replica


def test_a_substitute_is_named_only_where_policy_has_one_the_client_allows_it_and_it_is_ready() -> None:
    models = (ModelPolicy(model="m", fallback="small"), ModelPolicy(model="n", fallback="cold"))
    replicas = (replica("a"), replica("s", model="small"), replica("c", ModelState.SLEEPING, model="cold"))
    core = dispatcher(*replicas, models=models)
    allowed = core.substitute(shape("m", fallback_allowed=True), now=0.0)
    assert allowed is not None
    assert ("s", "small") == (allowed.replica, allowed.model)
    assert core.substitute(shape("m"), now=0.0) is None
    assert core.substitute(shape("n", fallback_allowed=True), now=0.0) is None
    assert core.substitute(shape("small", fallback_allowed=True), now=0.0) is None


def test_an_answer_that_waits_for_nobody_is_expected_to_decode_for_its_usual_length() -> None:
    core = dispatcher(replica("a"), replica("e", model="e", task=Task.EMBED))
    decision, _ = send(core, shape(max_tokens=100))
    short, long = (core.decode_ms(decision, shape(max_tokens=size)) for size in (10, 100))
    assert 0.0 < 9.0 * short < long < 11.0 * short
    assert 0.0 == core.decode_ms(core.pick(shape("nobody"), now=0.0), shape("nobody"))
    asked = shape("e", embedding=True)
    assert 0.0 == core.decode_ms(core.pick(asked, now=0.0), asked)
    core.apply(fleet(), 1.0)
    assert 0.0 == core.decode_ms(decision, shape(max_tokens=100))


def test_the_decisions_about_a_request_are_told_as_chapters_to_who_tells_the_story() -> None:
    core = dispatcher(replica("a"))
    send(core)
    (chapter,) = core.chapters("r")
    assert "send a: the best by expected_time of 1" == chapter.said
    assert [] == core.chapters("another")


def test_of_many_replicas_those_that_are_looked_at_are_made_anew_when_something_happened_to_them() -> None:
    core = dispatcher(*(replica(f"r{n}") for n in range(20)), constants=Constants(scan_limit=10, explore=0.0))
    for n in range(30):
        asked = [shape(prompt=bytes([n, second]) * 4000) for second in range(2)]
        decisions = [core.pick(one, now=0.0) for one in asked]
        for decision, one in zip(decisions, asked, strict=True):
            core.begin(decision, one, 0.0)
    counts = core.in_flight().values()
    assert 60 == sum(counts)
    assert 20 == len(counts)
    assert max(counts) - min(counts) <= 3

"""The virtual-time fleet: safe while things break, live after they stop, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from pathlib import Path

import msgspec
import pytest

from loadtest.sim import suite
from loadtest.sim.bench import Bench, key
from loadtest.sim.judge import Figures, judge, losses, table
from loadtest.sim.outcome import Outcome, outcome_of
from loadtest.sim.scenario import Scenario
from loadtest.sim.world import Violation, World

SMALL = Scenario(requests=100, nodes=6, warm=(2, 2), cold=1, slow={1: 2.0}, degrade={2: 4.0}, speed=1.0)


def changed(**more: object) -> Scenario:
    return msgspec.structs.replace(SMALL, **more)


def outcome(scenario: Scenario) -> Outcome:
    world = World(scenario)
    world.run()
    return outcome_of(world)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"policy": "least_in_flight"},
        {"policy": "ready_only"},
        {"routers": 3, "sticky": False, "report_loss": 0.5},
        {"crashes": 4},
        {"crashes": 3, "report_loss": 1.0},
    ],
)
def test_every_request_ends_and_nothing_stays_in_flight(more: dict[str, object]) -> None:
    found = outcome(changed(**more))
    assert all(isfinite(t) for t in found.ttft)
    if more.get("crashes"):
        assert found.retried > 0


def test_a_run_that_ends_before_its_requests_is_a_violation() -> None:
    with pytest.raises(Violation, match="never ended"):
        World(SMALL).check_liveness()


def test_a_request_that_is_counted_twice_is_a_violation() -> None:
    world = World(SMALL)
    world._held["m0"] = {0: world.jobs[0]}
    with pytest.raises(Violation, match="1 held, 0 in flight, 0 ended of 0"):
        world.check_safety()


def test_an_engine_with_requests_that_cannot_serve_is_a_violation() -> None:
    world = World(SMALL)
    asleep = next(engine for engine in world.engines.values() if engine.state.value == "sleeping")
    asleep.jobs["1.0"] = world.jobs[0]
    with pytest.raises(Violation, match="has requests and is sleeping"):
        world.check_safety()


def test_a_seed_reproduces_everything() -> None:
    one, other = outcome(changed(crashes=2)), outcome(changed(crashes=2))
    assert one == other
    assert one != outcome(changed(crashes=2, seed=2))


def test_azure_requests_share_nothing() -> None:
    found = judge(outcome(changed(trace="azure-conv", speed=2.0)))
    assert 0.0 == found.hit
    assert 0.0 < found.slo <= 100.0


@pytest.mark.parametrize("policy", ["expected_time", "full_information"])
def test_nobody_beats_the_bound(policy: str) -> None:
    found = outcome(changed(policy=policy))
    assert [] == [(t, b) for t, b in zip(found.ttft, found.bound, strict=True) if t < b - 1e-6]


def test_who_knows_everything_does_better_than_who_knows_nothing() -> None:
    knows, guesses = outcome(changed(policy="full_information")), outcome(changed(policy="random"))
    assert judge(knows).p50 < judge(guesses).p50


def test_tuning_takes_the_constants_that_keep_the_most_promises(tmp_path: Path) -> None:
    bench = Bench(workers=1, store=None, version="v")
    base = changed(requests=120)
    best = {}
    for tuned in suite.GRIDS["p2c"]:
        runs = [changed(requests=60, policy="p2c", tuned=tuned, seed=seed) for seed in suite.TUNING_SEEDS]
        figures = bench.figures(runs)
        best[tuned["choices"]] = sum(f.slo for f in figures)
    chosen = suite.tune(bench, base, ["p2c", "lmetric"])
    assert ["p2c"] == list(chosen)
    assert max(best.values()) == pytest.approx(best[chosen["p2c"]["choices"]], abs=0.1)


def test_an_interrupted_sweep_goes_on_unless_the_code_changed(tmp_path: Path) -> None:
    store = tmp_path / "runs.jsonl"
    scenario = changed(requests=40)
    first = Bench(workers=1, store=store, version="v1").figures([scenario])
    assert 1 == len(store.read_bytes().splitlines())
    assert first * 2 == Bench(workers=1, store=store, version="v1").figures([scenario, scenario])
    assert 1 == len(store.read_bytes().splitlines())
    assert first == Bench(workers=1, store=store, version="v2").figures([scenario])
    assert 2 == len(store.read_bytes().splitlines())


def test_every_constant_of_a_scenario_names_another_run() -> None:
    assert key(SMALL, "v") == key(changed(), "v")
    assert key(SMALL, "v") != key(changed(tuned={"match": 0.3}), "v")


def figures(**more: float) -> Figures:
    even = dict.fromkeys(Figures.__struct_fields__, 100.0)
    return Figures(**(even | more))


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ({"p99": 120.0}, {"p99": 100.0}, "p99 120 against 100 of other"),
        ({"p99": 102.0}, {"p99": 100.0}, "No rule"),
        ({"p99": 80.0}, {"p99": 100.0}, "No rule"),
        ({"slo": 80.0}, {"slo": 90.0}, "SLO % 80 against 90 of other"),
        ({"slo": 99.0}, {"slo": 90.0}, "No rule"),
    ],
)
def test_where_we_lose_is_said(ours: dict[str, float], theirs: dict[str, float], said: str) -> None:
    rows = {"ours": [figures(**ours)] * 2, "other": [figures(**theirs)] * 2, "oracle": [figures(p50=1.0)] * 2}
    assert said in losses(rows, "ours", but=("oracle",))


def test_a_difference_within_the_others_range_is_no_loss() -> None:
    rows = {"ours": [figures(p99=120.0)], "other": [figures(p99=90.0), figures(p99=100.0), figures(p99=130.0)]}
    assert "No rule" in losses(rows, "ours")


def test_a_table_shows_the_median_and_its_range() -> None:
    text = table({"ours": [figures(p50=1.5), figures(p50=2.5), figures(p50=9.0)]})
    assert "| ours | 2.5 [1.5, 9] | 100 |" in text


SWEEPS: list[Callable[[Scenario], dict[str, Scenario]]] = [
    suite.ablations,
    suite.wrong,
    suite.routers,
    suite.reports,
    suite.crashes,
]


@pytest.mark.parametrize("sweep", SWEEPS)
def test_no_sweep_runs_the_same_twice(sweep: Callable[[Scenario], dict[str, Scenario]]) -> None:
    rows = list(sweep(SMALL).values())
    assert len(rows) == len({key(one, "v") for one in rows})

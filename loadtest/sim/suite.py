"""What is simulated: fleets, rivals with the constants they may be tuned over, and what our own rule is put through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import msgspec

from loadtest.sim.bench import Bench
from loadtest.sim.judge import Figures
from loadtest.sim.scenario import Scenario
from router.core.constants import Constants

OWN = "expected_time"
BOUND = "full_information"
RIVALS = (
    "lmetric",
    "llmd_weights",
    "sglang_cache_aware",
    "least_in_flight",
    "p2c",
    "peak_ewma_p2c",
    "round_robin",
    "random",
)
STRONG = ("lmetric", "llmd_weights", "sglang_cache_aware", "least_in_flight")

EQUAL = {"slow": {}, "degrade": {}, "warm": (4, 4, 4, 4), "cold": 0}
FLEETS: dict[str, dict[str, Any]] = {
    "warm": EQUAL,
    "slow": {**EQUAL, "slow": {3: 2.0, 11: 2.0}},
    "degrading": {**EQUAL, "degrade": {6: 4.0}},
    "hard": {},
}
WORDS = {
    "warm": "16 equal GPUs, four models of four replicas each, all warm",
    "slow": "the same, two nodes twice as slow",
    "degrading": "the same, one node four times slower from half time",
    "hard": "two nodes twice as slow, one four times slower from half time, four warm models (6, 4, 3, 3 replicas) and "
    "four cold ones with a quarter of the sessions",
}
SPEEDS = {"mooncake-conv": 1.8, "azure-conv": 14.0}

GRIDS: dict[str, list[dict[str, float]]] = {
    "sglang_cache_aware": [
        {"absolute": absolute, "match": match} for absolute in (4.0, 8.0, 16.0, 32.0) for match in (0.3, 0.5)
    ],
    "llmd_weights": [
        {"queue": queue, "kv": kv, "prefix": prefix}
        for queue, kv, prefix in ((2.0, 2.0, 3.0), (3.0, 1.0, 3.0), (4.0, 2.0, 1.0), (2.0, 0.0, 1.0), (1.0, 1.0, 3.0))
    ],
    "p2c": [{"choices": choices} for choices in (2, 3, 4)],
    "peak_ewma_p2c": [{"choices": choices} for choices in (2, 3, 4)],
}
"""LMETRIC, least in flight, round robin and random have nothing to tune. Ours keeps its constants everywhere."""
TUNING_SEEDS = (104, 108)
"""Other seeds than those of the tables; they begin at the fourth and third place of the trace."""


def changed(scenario: Scenario, **more: Any) -> Scenario:
    return msgspec.structs.replace(scenario, **more)


def on(trace: str, fleet: str, *, requests: int) -> Scenario:
    return Scenario(trace=trace, speed=SPEEDS[trace], requests=requests, **FLEETS[fleet])


def tune(bench: Bench, base: Scenario, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each rival the constants with the largest share within the SLO, then the least p99: on seeds of their own and
    half the requests."""
    base = changed(base, requests=base.requests // 2)
    asked = [(name, tuned) for name in names for tuned in GRIDS.get(name, [])]
    runs = bench.figures(
        [changed(base, policy=name, tuned=tuned, seed=seed) for name, tuned in asked for seed in TUNING_SEEDS],
        what="tuning",
    )
    best: dict[str, tuple[tuple[float, float], dict[str, float]]] = {}
    for place, (name, tuned) in enumerate(asked):
        mine = runs[place * len(TUNING_SEEDS) : (place + 1) * len(TUNING_SEEDS)]
        rank = (-round(median(f.slo for f in mine), 1), median(f.p99 for f in mine))
        if name not in best or rank < best[name][0]:
            best[name] = (rank, tuned)
    return {name: tuned for name, (_, tuned) in best.items()}


def contest(base: Scenario, names: Sequence[str], tuned: Mapping[str, dict[str, float]]) -> dict[str, Scenario]:
    rows = {"**expected_time** (ours)": base, "full information": changed(base, policy=BOUND)}
    for name in names:
        arguments = tuned.get(name, {})
        told = ", ".join(f"{key} {value:g}" for key, value in arguments.items())
        rows[f"{name} ({told})" if told else name] = changed(base, policy=name, tuned=arguments)
    return rows


def ablations(base: Scenario) -> dict[str, Scenario]:
    """Our rule with a part missing."""

    def without(**constants: float) -> Scenario:
        return changed(base, constants=msgspec.structs.replace(Constants(), **constants))

    return {
        "as it is": base,
        "no price for interrupting others": without(harm_weight=0.0),
        "half that price": without(harm_weight=0.5),
        "no learned slowness": without(slowness_up=0.0, slowness_down=0.0),
        "no evidence from requests that still wait": without(censored_share=0.0),
        "no price for a slower decode": without(excess_tpot_weight=0.0),
        "no KV barrier": without(kv_barrier_ms=0.0),
        "no ties, no exploration": without(tie_ms=0.0, tie_fraction=0.0, explore=0.0),
        "no second copy of a model that is ready": changed(base, policy="ready_only"),
    }


def wrong(base: Scenario) -> dict[str, Scenario]:
    """Our first idea of the device is wrong by a factor; it is learned from then on."""
    return {
        "right": base,
        "all costs x2": changed(base, prior_prefill=2.0, prior_step=2.0),
        "all costs x0.5": changed(base, prior_prefill=0.5, prior_step=0.5),
        "prefill x2, step x0.5": changed(base, prior_prefill=2.0, prior_step=0.5),
        "prefill x0.5, step x2": changed(base, prior_prefill=0.5, prior_step=2.0),
    }


def routers(base: Scenario) -> dict[str, Scenario]:
    """Several routers that know of each other only what reports say; prefixes are not shared."""
    rows = {"1 router": base}
    for count in (2, 4, 8):
        rows[f"{count} routers, a session stays with its router"] = changed(base, routers=count)
        rows[f"{count} routers, requests at random"] = changed(base, routers=count, sticky=False)
    return rows


def reports(base: Scenario) -> dict[str, Scenario]:
    """Age and loss of reports, where they matter: four routers, requests at random."""
    four = changed(base, routers=4, sticky=False)
    rows = {f"a report each {age:g} s": changed(four, report_s=age) for age in (0.25, 1.0, 5.0, 20.0)}
    rows |= {f"each second, {100 * loss:.0f} % lost": changed(four, report_loss=loss) for loss in (0.5, 0.9, 1.0)}
    rows["1 router, none at all"] = changed(base, report_loss=1.0)
    return rows


def crashes(base: Scenario) -> dict[str, Scenario]:
    return {f"{count} engines crash": changed(base, crashes=count) for count in (0, 3, 12)} | {
        "12 crash, 4 routers, 90 % of reports lost": changed(
            base, crashes=12, routers=4, sticky=False, report_loss=0.9
        ),
        "12 crash, LMETRIC": changed(base, crashes=12, policy="lmetric"),
    }


Rows = Mapping[str, Sequence[Figures]]

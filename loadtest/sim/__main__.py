"""Policies side by side on a simulated fleet in virtual time: `python -m loadtest.sim --help`.

Prints medians over seeds with their range. The default is the fleet of routing.md section 5: 16 GPUs of which two are
slow and one becomes slow at half time, four warm models and four cold ones with a quarter of the traffic.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from math import inf
from statistics import median

import msgspec

from loadtest.sim.world import Outcome, Scenario, World
from loadtest.traces import NAMES
from router.core.constants import Constants
from router.core.policies import POLICIES

COLUMNS: tuple[tuple[str, Callable[[Outcome], float]], ...] = (
    ("p50 ms", lambda o: quantile(o.ttft, 0.5)),
    ("p95 ms", lambda o: quantile(o.ttft, 0.95)),
    ("p99 ms", lambda o: quantile(o.ttft, 0.99)),
    ("warm p50", lambda o: quantile(o.warm_ttft, 0.5)),
    ("warm p99", lambda o: quantile(o.warm_ttft, 0.99)),
    ("hit %", lambda o: 100.0 * o.hit),
    ("SLO %", lambda o: 100.0 * goodput(o)),
    ("loads", lambda o: float(o.loads)),
    ("busy cv", lambda o: o.busy_cv),
    ("bias", lambda o: o.accuracy[0]),
    ("p90 cov", lambda o: o.accuracy[2]),
    ("lost", lambda o: float(o.unfinished)),
)


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else inf


def goodput(outcome: Outcome) -> float:
    """Share with a first token within 2 s and 50 ms between tokens."""
    good = sum(t <= 2000.0 and p <= 50.0 for t, p in zip(outcome.ttft, outcome.tpot, strict=True))
    return good / max(1, len(outcome.ttft))


def simulate(scenario: Scenario) -> Outcome:
    world = World(scenario)
    world.run()
    return world.outcome()


def variants(base: Scenario) -> dict[str, Scenario]:
    """Ablations and harder worlds, all with the default rule."""
    change = msgspec.structs.replace
    return {
        "as it is": base,
        "homogeneous, all warm": change(base, slow={}, degrade={}, warm=(4, 4, 4, 4), cold=0),
        "no learned slowness": change(base, constants=Constants(slowness_up=0.0, slowness_down=0.0)),
        "reports each 5 s": change(base, report_s=5.0),
        "90 % of reports lost": change(base, report_loss=0.9),
        "no reports": change(base, report_loss=1.0),
        "4 routers, sticky": change(base, routers=4),
        "4 routers, at random": change(base, routers=4, sticky=False),
        "8 routers, at random": change(base, routers=8, sticky=False),
        "prior: prefill x1.7, step x0.6": change(base, prior_prefill=1.7, prior_step=0.6),
        "12 crashes": change(base, crashes=12),
    }


def main() -> None:
    arguments = _parser().parse_args()
    base = Scenario(
        trace=arguments.trace,
        speed=arguments.speed,
        requests=arguments.requests,
        report_s=arguments.report_s,
        routers=arguments.routers,
    )
    if arguments.warm:
        base = msgspec.structs.replace(base, slow={}, degrade={}, warm=(4, 4, 4, 4), cold=0)
    if arguments.variants:
        rows = variants(base)
    else:
        rows = {name: msgspec.structs.replace(base, policy=name) for name in arguments.policies}
    seeds = range(1, arguments.seeds + 1)
    began = time.perf_counter()
    print(f"{base.trace} x{base.speed:g}, {base.requests} requests, {len(seeds)} seeds: median [least, most]")
    print(f"{'':32}" + "".join(f"{name:>22}" for name, _ in COLUMNS))
    with ProcessPoolExecutor(max_workers=arguments.workers) as pool:
        work = [msgspec.structs.replace(scenario, seed=seed) for scenario in rows.values() for seed in seeds]
        outcomes = pool.map(simulate, work)
        for name in rows:
            mine = list(itertools.islice(outcomes, len(seeds)))
            cells = [_cell([figure(o) for o in mine]) for _, figure in COLUMNS]
            print(f"{name:32}" + "".join(f"{cell:>22}" for cell in cells), flush=True)
    bound = [median(quantile(o.bound, q) for o in mine) for q in (0.5, 0.95, 0.99)]
    print(f"{'no queue, no cache':32}" + "".join(f"{value:>22.0f}" for value in bound))
    print(f"took {time.perf_counter() - began:.0f} s")


def _cell(values: Sequence[float]) -> str:
    return f"{_short(median(values))} [{_short(min(values))}, {_short(max(values))}]"


def _short(value: float) -> str:
    if value == inf:
        return "never"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value < 3 else f"{value:.1f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.sim", description=__doc__)
    parser.add_argument("--trace", choices=NAMES, default="mooncake-conv")
    parser.add_argument("--speed", type=float, default=1.8, help="divide the trace's times by this")
    parser.add_argument("--requests", type=int, default=2000, help="the first so many of the trace")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--report-s", type=float, default=1.0, help="seconds between load reports")
    parser.add_argument("--routers", type=int, default=1)
    parser.add_argument("--warm", action="store_true", help="equal nodes, every model ready: routing alone")
    parser.add_argument("--variants", action="store_true", help="the default rule under ablations and faults")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--workers", type=int, default=2, help="processes")
    return parser


if __name__ == "__main__":
    main()

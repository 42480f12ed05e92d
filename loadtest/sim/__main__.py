"""Every policy and our own rule's limits on a simulated fleet in virtual time, as one document.

    python -m loadtest.sim --quick
    python -m loadtest.sim --store /tmp/sim.jsonl --out router/core/SIMULATION.md

Medians over seeds with the range [least, most]. Safety is checked in every run, liveness after it; a violation ends the
sweep. With `--store`, runs are remembered and an interrupted sweep goes on.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtest.sim import suite
from loadtest.sim.bench import Bench, code
from loadtest.sim.judge import Figures, losses, table
from loadtest.sim.scenario import Scenario
from loadtest.traces import NAMES

OWN_ROW = "**expected_time** (ours)"
PARTS = ("rivals", "ablations", "wrong", "routers", "reports", "crashes")


class Sweep:
    def __init__(self, bench: Bench, *, seeds: Sequence[int], requests: int, rough: bool) -> None:
        self.bench, self.seeds, self.requests, self.rough = bench, seeds, requests, rough

    def rows(self, scenarios: dict[str, Scenario], what: str) -> dict[str, list[Figures]]:
        asked = [suite.changed(one, seed=seed) for one in scenarios.values() for seed in self.seeds]
        found = iter(self.bench.figures(asked, what=what))
        return {name: [next(found) for _ in self.seeds] for name in scenarios}

    def rivals(self, trace: str, fleet: str, names: Sequence[str]) -> Iterator[str]:
        base = suite.on(trace, fleet, requests=self.requests)
        tuned = {} if self.rough else suite.tune(self.bench, base, names)
        rows = self.rows(suite.contest(base, names, tuned), f"{trace}, {fleet}")
        yield f"### {trace} x{base.speed:g}, fleet `{fleet}`: {suite.WORDS[fleet]}\n"
        yield table(rows) + "\n"
        yield losses(rows, OWN_ROW, but=("full information",)) + "\n"

    def own(self, title: str, scenarios: dict[str, Scenario]) -> Iterator[str]:
        yield f"### {title}\n"
        yield table(self.rows(scenarios, title)) + "\n"

    def document(self, parts: Sequence[str], traces: Sequence[str]) -> Iterator[str]:
        hard = suite.on("mooncake-conv", "hard", requests=self.requests)
        warm = suite.on("mooncake-conv", "warm", requests=self.requests)
        if "rivals" in parts:
            yield "## Policies\n"
            for trace in traces:
                for fleet in ("warm", "hard"):
                    yield from self.rivals(trace, fleet, suite.RIVALS)
            if "mooncake-conv" in traces:
                for fleet in ("slow", "degrading"):
                    yield from self.rivals("mooncake-conv", fleet, suite.STRONG)
        yield "## Our rule under stress (mooncake-conv)\n"
        if "ablations" in parts:
            yield from self.own("A part of the rule missing, fleet `hard`", suite.ablations(hard))
            yield from self.own("A part of the rule missing, fleet `warm`", suite.ablations(warm))
        if "wrong" in parts:
            yield from self.own("Wrong cost constants at the start, fleet `hard`", suite.wrong(hard))
        if "routers" in parts:
            yield from self.own("Several routers, prefixes not shared, fleet `hard`", suite.routers(hard))
        if "reports" in parts:
            yield from self.own("Reports that are old or lost, four routers, fleet `hard`", suite.reports(hard))
        if "crashes" in parts:
            yield from self.own("Engines that crash, fleet `hard`", suite.crashes(hard))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    began = time.perf_counter()
    version = code()
    bench = Bench(workers=arguments.workers, store=arguments.store, version=version)
    seeds = range(1, (2 if arguments.quick else arguments.seeds) + 1)
    requests = 600 if arguments.quick else arguments.requests
    sweep = Sweep(bench, seeds=seeds, requests=requests, rough=arguments.quick)
    said = []
    for text in sweep.document(arguments.parts, arguments.traces):
        print(text, flush=True)
        said.append(text)
    print(f"took {time.perf_counter() - began:.0f} s", file=sys.stderr)
    if arguments.out:
        arguments.out.write_text(_head(arguments, requests=requests, seeds=len(seeds)) + "\n".join(said))
    return 0


def _head(arguments: argparse.Namespace, *, requests: int, seeds: int) -> str:
    today = datetime.datetime.now(tz=datetime.UTC).date()
    options = "--quick" if arguments.quick else f"--requests {requests} --seeds {seeds}"
    tuning = ", ".join(str(seed) for seed in suite.TUNING_SEEDS)
    grids = "; ".join(
        f"{name}: "
        + ", ".join("/".join(f"{value:g}" for value in one.values()) for one in grid)
        + f" ({'/'.join(grid[0])})"
        for name, grid in suite.GRIDS.items()
    )
    return f"""# Simulation of the decision core

`python -m loadtest.sim {options} --out router/core/SIMULATION.md`, {today}. Production dispatchers over the batching
model (`loadtest/sim`), virtual time, {requests} requests a run. Each seed takes another part of the trace (five places,
in turn), other models for the sessions and other dice. Median over {seeds} seeds and [least, most]; the first tenth of
each run is left out. Reports each second, one router, unless said otherwise. In every run: no request lost, doubled or
sent to an engine that cannot serve, and at the end none unfinished, held or counted.

* SLO: first token within 2 s and 50 ms a token after it; TPOT: the second half alone. `warm p99`: requests for models
  that were ready from the start. `excess`: beyond what no router can beat (own prefill alone on a full-speed node, all
  common prefixes cached, each cold model woken once).
* `full information`: our objective over the truth of all queues, speeds, caches and loads. Greedy, so it can be beaten.
* Rivals are emulated from their documents, with our ledger and our prefix index, which is more than some of them have.
  Their constants are tuned on seeds {tuning} for each fleet and trace: largest SLO share, then least p99. Tried:
  {grids}. LMETRIC and the rest have nothing to tune. Ours is not tuned per fleet.
* Rivals use a replica that must be loaded only where none is ready: none of them knows better.
* The simulator has the functional form of our rule: absolute gains are indicative, differences under 10 % no findings.

"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.sim", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="600 requests, 2 seeds, rivals untuned: minutes")
    parser.add_argument("--requests", type=int, default=2500, help="of the trace, per run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--traces", nargs="+", choices=NAMES, default=["mooncake-conv", "azure-conv"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--store", type=Path, help="JSON lines: runs are remembered there and not repeated")
    parser.add_argument("--out", type=Path, help="Markdown document")
    return parser


if __name__ == "__main__":
    sys.exit(main())

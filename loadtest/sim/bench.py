"""Many simulations on all cores, each remembered by what it was made of, so that an interrupted sweep goes on."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import msgspec

from loadtest.sim.judge import Figures, judge
from loadtest.sim.outcome import outcome_of
from loadtest.sim.scenario import Scenario
from loadtest.sim.world import World

ROOT = Path(__file__).resolve().parents[2]
SOURCES = tuple(f"loadtest/sim/{name}.py" for name in ("node", "rivals", "scenario", "world", "outcome", "judge"))
CORES = ("router/core", "node_agent/engines/simulated")
PROGRESS_S = 15.0


class Line(msgspec.Struct, frozen=True):
    """One run in the store."""

    key: str
    figures: Figures


def code() -> str:
    """Changes with the code that a run consists of, so that no figure outlives what it was measured with."""
    files = [ROOT / name for name in SOURCES]
    files += [path for folder in CORES for path in sorted((ROOT / folder).rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def key(scenario: Scenario, version: str) -> str:
    return f"{version} {hashlib.sha256(msgspec.json.encode(scenario)).hexdigest()[:16]}"


def run(scenario: Scenario) -> Figures:
    world = World(scenario)
    world.run()
    return judge(outcome_of(world))


class Bench:
    def __init__(self, *, workers: int, store: Path | None, version: str) -> None:
        """`version` is of the code, see `code`."""
        self.workers, self.store, self.version = workers, store, version
        self._known: dict[str, Figures] = {}
        if store is not None and store.exists():
            lines = store.read_bytes().splitlines()
            self._known = {line.key: line.figures for line in (msgspec.json.decode(raw, type=Line) for raw in lines)}

    def figures(self, scenarios: Iterable[Scenario], *, what: str = "") -> list[Figures]:
        """In the order asked; those not known yet are run."""
        asked = list(scenarios)
        keys = [key(one, self.version) for one in asked]
        missing = {name: one for name, one in zip(keys, asked, strict=True) if name not in self._known}
        if missing:
            self._run(missing, what)
        return [self._known[name] for name in keys]

    def _run(self, missing: dict[str, Scenario], what: str) -> None:
        began = said = time.perf_counter()
        with ProcessPoolExecutor(max_workers=self.workers) as pool:
            futures = {pool.submit(run, one): name for name, one in missing.items()}
            for number, future in enumerate(as_completed(futures), start=1):
                self._keep(futures[future], future.result())
                now = time.perf_counter()
                if now - said > PROGRESS_S or number == len(missing):
                    said, left = now, (len(missing) - number) * (now - began) / number
                    print(f"{what}: {number} of {len(missing)} runs, {left:.0f} s left", file=sys.stderr, flush=True)

    def _keep(self, name: str, figures: Figures) -> None:
        self._known[name] = figures
        if self.store is not None:
            with self.store.open("ab") as file:
                file.write(msgspec.json.encode(Line(name, figures)) + b"\n")

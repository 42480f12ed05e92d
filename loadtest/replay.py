"""Traces in real time against live simulated fleets, through real routers: who decides better, and at what cost?

    python -m loadtest.replay --budget 35 --store replay.jsonl --out replay.md
    python -m loadtest.replay --traces azure-conv --plans mixed --only switchyard,smg:cache_aware --seconds 60

Two traces and two fleets (`uniform`: eight equal nodes, one warm model; `mixed`: two slow nodes, one that degrades at
half time, two models that sleep), each contestant alone against a fresh fleet with the same requests at the same times.
With `--store` each round is kept as soon as it is done, and an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path

import msgspec
import uvloop

from loadtest import traces
from loadtest.fleet import PLANS
from loadtest.processes import CannotStart
from loadtest.replay_bound import sentence
from loadtest.replay_round import CONTESTANTS, one_round
from loadtest.verdict import Load, Told, against_the_best, table

OWN = "switchyard"
DEFAULT = tuple(name for name in CONTESTANTS if name != "nginx")
AROUND_S = 12.0
"""What a round takes beside its traffic: starting, warming, the last answers, stopping."""
LEAST_S = 20.0
PROFILE = "llama-3.1-70b-tp4-h100"
"""Slow enough that a fleet near its capacity sends few enough tokens for two cores to carry: with the 8B profile the
machine, not the fleet, would be full first."""
MAX_OUTPUT = 40
"""Answers are cut: every router pays for each event, and the Python peer's 0.3 to 0.6 ms would measure two cores
instead of decisions."""
SCALE = {"mooncake-conv": 0.5, "azure-conv": 2.0}
"""Of prompts: so that both traces ask for the same work with about 10 and 20 requests a second. With many more, the
Python peer would be full before the fleet is."""
SPEED = {
    ("mooncake-conv", "uniform"): 2.85,
    ("mooncake-conv", "mixed"): 2.2,
    ("azure-conv", "uniform"): 4.0,
    ("azure-conv", "mixed"): 3.1,
}
"""Time compression at which about 70 % of what the fleet can do is asked for: full batches over the whole trace take
12.3 and 32.3 requests a second of `uniform`, prefix hits save Mooncake's prompts a seventh, and in `mixed` the nodes of
`sim-a` carry 60 % of the requests and are worth 3.75 full ones once one of them has degraded."""


class Kept(msgspec.Struct, frozen=True):
    """A round in the store. JSON has no infinity: -1 stands for it."""

    contestant: str
    load: Load
    told: Told


class Round(msgspec.Struct, frozen=True):
    contestant: str
    load: Load


def rounds_of(args: argparse.Namespace) -> list[Round]:
    """In the order of running: contestants side by side, so that the machine's moods hit all alike."""
    cells = len(args.traces) * len(args.plans) * len(args.only) * args.rounds
    seconds = args.seconds or max(LEAST_S, 60.0 * args.budget / cells - AROUND_S)
    return [
        Round(name, _load(trace, plan, round(seconds), args, number))
        for number in range(args.rounds)
        for trace in args.traces
        for plan in args.plans
        for name in args.only
    ]


def _load(trace: str, plan: str, seconds: float, args: argparse.Namespace, number: int) -> Load:
    return Load(
        trace=trace,
        plan=plan,
        speed=args.speed or args.load * SPEED[trace, plan],
        seconds=seconds,
        offset_s=args.offset,
        scale=args.prompt_scale or SCALE[trace],
        seed=args.seed + number,
        max_output=args.max_output,
        profile=PROFILE,
    )


class Store:
    """Rounds that were run, in memory and, if there is a path, as JSON lines."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.kept: list[Kept] = []
        if path is not None and path.exists():
            self.kept = [
                _with_infinity(msgspec.json.decode(line, type=Kept)) for line in path.read_bytes().splitlines()
            ]

    def of(self, one: Round) -> Told | None:
        found = (kept.told for kept in self.kept if kept.contestant == one.contestant and kept.load == one.load)
        return next(found, None)

    def add(self, kept: Kept) -> None:
        self.kept.append(kept)
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write(msgspec.json.encode(_without_infinity(kept)) + b"\n")


TIMES = ("ttft_p50_s", "ttft_p95_s", "ttft_p99_s")


def _without_infinity(kept: Kept) -> Kept:
    times = {name: -1.0 for name in TIMES if getattr(kept.told, name) == inf}
    return msgspec.structs.replace(kept, told=msgspec.structs.replace(kept.told, **times))


def _with_infinity(kept: Kept) -> Kept:
    times = {name: inf for name in TIMES if getattr(kept.told, name) < 0}
    return msgspec.structs.replace(kept, told=msgspec.structs.replace(kept.told, **times))


def run(rounds: Sequence[Round], store: Store) -> None:
    """Whatever is not in the store yet. A contestant that cannot start is left out with a sentence."""
    todo = [one for one in rounds if store.of(one) is None]
    seconds = sum(one.load.seconds + AROUND_S for one in todo)
    _say(f"{len(todo)} of {len(rounds)} rounds to run, about {seconds / 60:.0f} minutes")
    for number, one in enumerate(todo, start=1):
        where = f"{number}/{len(todo)} {one.load.trace} {one.load.plan} {one.contestant:<26}"
        if why := CONTESTANTS[one.contestant].missing():
            _say(f"{where} skipped: {why}")
            continue
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="replay-") as at:
                told = uvloop.run(one_round(CONTESTANTS[one.contestant], one.load, Path(at)))
        except (CannotStart, OSError) as error:
            _say(f"{where} left out: {error}")
            continue
        store.add(Kept(one.contestant, one.load, told))
        _say(
            f"{where} p50 {told.ttft_p50_s:.2f} p99 {told.ttft_p99_s:.2f} s, goodput {told.goodput:.3f}, "
            f"{told.requests} requests, harness {told.harness_cores:.2f} cores{', VOID' if told.void else ''}, "
            f"took {time.monotonic() - began:.0f} s"
        )


def document(rounds: Sequence[Round], store: Store) -> str:
    cells: dict[tuple[str, str], tuple[Load, dict[str, list[Told]]]] = {}
    for one in rounds:
        told = store.of(one)
        if told is not None:
            _, found = cells.setdefault((one.load.trace, one.load.plan), (one.load, {}))
            found.setdefault(one.contestant, []).append(told)
    parts = []
    for load, found in cells.values():
        parts += [table(found, load), "", against_the_best(found, OWN), sentence(load), ""]
        parts += [f"{name}: {text}" for name, told in found.items() if (text := _failures(told))]
    return "\n".join(parts).rstrip() + "\n"


def _failures(rounds: Sequence[Told]) -> str:
    return "; ".join(f"{count} x {what}" for told in rounds for what, count in told.failures.items())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    args.only = args.only.split(",") if args.only else list(DEFAULT)
    if unknown := [name for name in args.only if name not in CONTESTANTS]:
        _say(f"no contestant {', '.join(unknown)}; there are {', '.join(CONTESTANTS)}")
        return 2
    rounds, store = rounds_of(args), Store(args.store)
    run(rounds, store)
    text = document(rounds, store)
    print(text)
    if args.out:
        args.out.write_text(text)
    return 0 if any(store.of(one) for one in rounds) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.replay", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--traces", nargs="+", default=list(traces.NAMES), choices=traces.NAMES)
    parser.add_argument("--plans", nargs="+", default=["uniform", "mixed"], choices=sorted(PLANS))
    parser.add_argument(
        "--only", default="", help=f"comma separated, of {', '.join(CONTESTANTS)}; default: LLM routers"
    )
    parser.add_argument("--budget", type=float, default=35.0, help="minutes for everything; sets --seconds")
    parser.add_argument("--seconds", type=float, default=0.0, help="of traffic per contestant and round")
    parser.add_argument("--rounds", type=int, default=1, help="each with another seed")
    parser.add_argument("--load", type=float, default=1.0, help="of what is about 70 %% of the fleet's capacity")
    parser.add_argument("--speed", type=float, default=0.0, help="time compression, instead of --load")
    parser.add_argument("--offset", type=float, default=600.0, help="where in the trace to begin, seconds")
    parser.add_argument("--prompt-scale", type=float, default=0.0, help="default: mooncake-conv 0.5, azure-conv 2")
    parser.add_argument("--max-output", type=int, default=MAX_OUTPUT, help="cut answers to so many tokens; 0: do not")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", type=Path, help="JSON lines: rounds are kept there and not repeated")
    parser.add_argument("--out", type=Path, help="Markdown file")
    return parser


if __name__ == "__main__":
    sys.exit(main())

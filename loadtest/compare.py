"""How dear is a router? All routers in one run on this machine, each alone on one core, the same engines and load.

    python -m loadtest.peers install
    python -m loadtest.compare --rounds 3
    python -m loadtest.compare --only switchyard,nginx,smg --quick
    python -m loadtest.compare --only switchyard --crowd 5000

The router has one core to itself; the engines, the client and what a router needs beside it share the other. Rounds
are interleaved (every contestant once per round), figures are medians over rounds, ratios are to nginx. It writes
compare.json, compare.md and compare.svg. What the figures cannot tell is in README.md of this room.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import msgspec
import uvloop

from loadtest import measures, report
from loadtest.client import Client
from loadtest.measures import Bench, Figures
from loadtest.peers import roster
from loadtest.peers.contestant import Command, Contestant, Launch, Site
from loadtest.plain import NoFigures
from loadtest.processes import CannotStart, Process, Processes, cores, free_port, pin

MODEL = "bench"
PROMPT_BYTES = 2000
START_LIMIT_S = 90.0
QUESTION_LIMIT_S = 60.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured, how long, where."""

    rounds: int
    seconds: float
    growth: bool
    router_core: int
    load_core: int


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        wanted = roster.named(args.only.split(",") if args.only else [])
    except KeyError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    contestants = [contestant for contestant in wanted if _present(contestant)]
    here = cores()
    plan = Plan(
        rounds=1 if args.quick else args.rounds,
        seconds=2.0 if args.quick else args.seconds,
        growth=not (args.quick or args.no_growth),
        router_core=args.router_core if args.router_core >= 0 else here[0],
        load_core=args.load_core if args.load_core >= 0 else here[-1],
    )
    if plan.router_core == plan.load_core:
        print("only one core: router and load share it, so latencies say little", file=sys.stderr)
    pin(plan.load_core)
    if args.crowd:
        return _crowds(contestants, plan, args.crowd, args.interval)
    rounds = _measure(contestants, plan)
    result = report.Result(
        machine=f"{platform.processor() or platform.machine()}, {len(here)} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}",
        command=f"python -m loadtest.compare --rounds {plan.rounds} --seconds {plan.seconds:g}",
        about={contestant.name: contestant.about for contestant in contestants},
        rounds=rounds,
        medians=medians(rounds),
    )
    _save(result, args.out)
    return 0


def _measure(contestants: Sequence[Contestant], plan: Plan) -> list[dict[str, Figures]]:
    rounds: list[dict[str, Figures]] = []
    for number in range(plan.rounds):
        figures: dict[str, Figures] = {}
        for contestant in contestants:
            began = monotonic()
            try:
                with tempfile.TemporaryDirectory(prefix="compare-") as at:
                    figures[contestant.name] = uvloop.run(_one(contestant, plan, Path(at)))
            except (CannotStart, TimeoutError, OSError) as error:
                print(f"{contestant.name:<16} left out of round {number + 1}: {error}", file=sys.stderr)
                continue
            print(f"round {number + 1}: {contestant.name:<16} {_line(figures[contestant.name])} "
                  f"({monotonic() - began:.0f} s)", flush=True)  # fmt: skip
        rounds.append(figures)
    return rounds


def _crowds(contestants: Sequence[Contestant], plan: Plan, streams: int, interval_s: float) -> int:
    """Many streams at once, one contestant after the other; figures as they come, no table. 1 if a stream broke."""
    broken = 0.0

    async def ask(contestant: Contestant, at: Path) -> Figures:
        async with _standing(contestant, plan, at) as bench:
            return await measures.crowd(bench, streams=streams, interval_s=interval_s, seconds=5 * plan.seconds)

    for contestant in contestants:
        with tempfile.TemporaryDirectory(prefix="compare-") as at:
            figures = uvloop.run(ask(contestant, Path(at)))
        broken += figures["errors"] + figures["silent"]
        print(contestant.name, *(f"{name} {value:.3g}" for name, value in figures.items()), sep="\n  ", flush=True)
    return 1 if broken else 0


async def _one(contestant: Contestant, plan: Plan, at: Path) -> Figures:
    """All questions to one contestant; memory is asked of a fresh process, whose heap has no slack from other work."""
    figures: Figures = {"errors": 0.0}
    for questions in (_costs, _memory):
        folder = at / questions.__name__
        folder.mkdir()
        async with _standing(contestant, plan, folder) as bench:
            await questions(bench, plan, figures)
    return figures


@asynccontextmanager
async def _standing(contestant: Contestant, plan: Plan, at: Path) -> AsyncIterator[Bench]:
    """The contestant on its core, engines and helpers on the other, ready to answer."""
    with Processes() as processes:
        argv = (sys.executable, "-m", "loadtest.baselines.engine", "--model", MODEL)
        engine = processes.start(argv, name="engine", directory=at, core=plan.load_core)
        ports = engine.await_line("ready ").split(",")
        site = Site(port=free_port(), engines=tuple(f"127.0.0.1:{p}" for p in ports), model=MODEL, directory=at)
        launch = contestant.launch(site)
        for helper in launch.helpers:
            _begin(processes, helper, at, plan.load_core)
        router = _begin(processes, launch.router, at, plan.router_core) if launch.router is not None else None
        bench = Bench(
            client=Client("127.0.0.1", launch.port, api_key=launch.api_key),
            engines=tuple(Client("127.0.0.1", int(port)) for port in ports),
            router=router,
            body=_body(),
            directory=at,
            core=plan.router_core,
            api_key=launch.api_key,
        )
        try:
            await _ready(bench, launch)
            await asyncio.sleep(1.0)
            yield bench
        finally:
            for client in (bench.client, *bench.engines):
                client.close()


def _begin(processes: Processes, command: Command, at: Path, core: int) -> Process:
    process = processes.start(command.argv, name=command.name, directory=at, core=core, env=command.env)
    if command.ready:
        process.await_line(command.ready)
    return process


async def _ready(bench: Bench, launch: Launch) -> None:
    """Healthy, and a stream went through: some say they are well before they know an engine."""
    deadline = monotonic() + START_LIMIT_S
    last = "no answer"
    while monotonic() < deadline:
        if bench.router is not None and not bench.router.running:
            raise CannotStart(f"it ended: {bench.router.last_words()}")
        health = await bench.client.get(launch.health)
        if health.status == 200:
            probe = await bench.client.fetch(bench.request(3))
            if probe.complete:
                return
            last = f"status {probe.status} {probe.error} {probe.text()[:300]!r}"
        await asyncio.sleep(0.1)
    raise CannotStart(f"not ready in {START_LIMIT_S:g} s: {last}; log: {bench.router and bench.router.last_words()}")


async def _costs(bench: Bench, plan: Plan, figures: Figures) -> None:
    seconds = plan.seconds
    await _ask(measures.paced(bench, streams=64, seconds=seconds), figures)
    if plan.growth:
        await _ask(measures.paced(bench, streams=128, seconds=seconds), figures, "_x2")
        await _ask(measures.paced(bench, streams=256, seconds=seconds), figures, "_x4")
    await _ask(measures.first_events(bench, seconds=seconds), figures)
    await _ask(measures.plain(bench, seconds=seconds), figures)
    await _ask(measures.delays_of_nagle(bench), figures)
    await _ask(measures.ceiling(bench, seconds=seconds), figures)


async def _memory(bench: Bench, plan: Plan, figures: Figures) -> None:
    await _ask(measures.memory(bench, levels=(1000, 2000, 4000) if plan.growth else (1000,)), figures)


async def _ask(question: Awaitable[Figures], figures: Figures, suffix: str = "") -> None:
    """A question that cannot be answered is said and counted, and its figures are left out."""
    try:
        async with asyncio.timeout(QUESTION_LIMIT_S):
            found = await question
    except (NoFigures, TimeoutError, OSError) as error:
        print(f"a question was not answered: {type(error).__name__} {error}", file=sys.stderr)
        figures["errors"] += 1
        return
    figures["errors"] += found.pop("errors")
    figures.update({name + suffix: value for name, value in found.items()})


def medians(rounds: Sequence[dict[str, Figures]]) -> dict[str, Figures]:
    """Per contestant and figure, over the rounds that have it; what a first event costs over `direct` of its round."""
    rounds = [
        {name: {**f, **_added(f, figures.get("direct", {}))} for name, f in figures.items()} for figures in rounds
    ]
    found: dict[str, Figures] = {}
    for name in {name: None for figures in rounds for name in figures}:
        mine = [figures[name] for figures in rounds if name in figures]
        names = {figure: None for figures in mine for figure in figures}
        found[name] = {f: statistics.median(figures[f] for figures in mine if f in figures) for f in names}
        found[name]["errors"] = sum(figures["errors"] for figures in mine)
    return found


def _added(figures: Figures, direct: Figures) -> Figures:
    names = [f"first_event_ms_{percentile}" for percentile in ("p50", "p99")]
    return {f"added_{name}": figures[name] - direct.get(name, 0.0) for name in names if name in figures}


def _body() -> dict[str, object]:
    system = "You are a careful assistant. " * (PROMPT_BYTES // 29)
    return {
        "model": MODEL,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": "Tell me of switchyards."}],
        "temperature": 0.7,
        "user": "compare",
    }


def _present(contestant: Contestant) -> bool:
    why = contestant.missing()
    if why:
        print(f"{contestant.name:<16} skipped: {why}", file=sys.stderr)
    return not why


def _line(figures: Figures) -> str:
    def shown(name: str) -> str:
        return f"{figures[name]:.1f}" if name in figures else "n/a"

    return (
        f"{shown('cpu_us_per_event'):>6} us/event, relay p99 {shown('relay_ms_p99'):>6} ms, "
        f"first event p99 {shown('first_event_ms_p99'):>6} ms, plain {shown('plain_per_s'):>7}/s at "
        f"{shown('cpu_us_per_plain'):>6} us, errors {shown('errors')}{_disturbed(figures)}"
    )


def _disturbed(figures: Figures) -> str:
    others = figures.get("others_share", 0.0)
    return f"; DISTURBED: others used {others:.0%} of the router's core" if others > report.DISTURBED else ""


def _save(result: report.Result, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = report.markdown(result)
    (out / "compare.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    (out / "compare.md").write_text(text)
    (out / "compare.svg").write_text(report.svg(result))
    print(f"\n{text}\nwritten to {out}/compare.json, compare.md, compare.svg")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="comma separated contestants; default: all that can run here")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measuring window")
    parser.add_argument("--quick", action="store_true", help="one round, two-second windows, no growth")
    parser.add_argument("--no-growth", action="store_true", help="leave out twice and four times the load")
    parser.add_argument("--crowd", type=int, default=0, metavar="STREAMS", help="only this: very many slow streams")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between events of a stream in a crowd")
    parser.add_argument("--router-core", type=int, default=-1, help="default: the first core")
    parser.add_argument("--load-core", type=int, default=-1, help="default: the last core")
    parser.add_argument("--out", type=Path, default=Path(".switchyard/compare"))
    return parser


if __name__ == "__main__":
    sys.exit(main())

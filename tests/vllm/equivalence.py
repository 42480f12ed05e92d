"""Is a stream that broke and went on the same as one that never broke? With real engines and a real router.

    .venv/bin/python -m tests.vllm.equivalence [--cuts 20] [--kills 4] [--only WORD] [--reasoning] [--seed 1]

Each kind of request is first asked of both engines directly: what they say is what the client must have in the end.
Then the same is asked of the router, over proxies that break the engine's answer after k events, for many k, in five
ways, some of them twice (`--cuts` for each kind). And engines are killed with -9, a dozen streams of all kinds on each
(`--kills`): the whole group, or the core alone, which vLLM turns into an error event and `[DONE]`. `--reasoning` starts
the engines with a parser for thoughts, and asks for those instead. Prints a table, and whatever was not as it should
be; ends with 1 if anything was not. How answers are judged: trial.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import enum
import os
import random
import signal
import sys
from collections.abc import Sequence

import httpx

from tests.recordings.record import stops
from tests.vllm.answers import Ended, read
from tests.vllm.cutter import Cut, Cuts, Cutter, How
from tests.vllm.house import House
from tests.vllm.kinds import Kind, kinds, reasoning_kinds
from tests.vllm.servers import GENERATE, REMEDY, VllmServer, available, start_all
from tests.vllm.trial import Asking, Reference, Row, Trial

AT_ONCE = 6
TWICE = 4
"""Each so-manieth break is followed by another one."""
TIME_LIMIT_S = 60.0
JSON = {"content-type": "application/json"}
STREAMS = 14
"""On an engine that is killed; it runs 16 at once."""
LONG_TOKENS = 160
AFTER = (3, 40, 15, 80)
"""Events that every stream has brought, or it is over, before its engine is killed."""
REASONING = ("--reasoning-parser=qwen3",)


class Kill(enum.StrEnum):
    GROUP = "killed"
    CORE = "core killed"


def places(events: int, count: int, rng: random.Random) -> list[int]:
    """Up to `count` numbers of events to break after, spread over all there are."""
    everywhere = range(1, events)
    if len(everywhere) <= count:
        return list(everywhere)
    step = len(everywhere) / count
    return [1 + int((number + rng.random()) * step) for number in range(count)]


async def cut_all(
    house: House, engines: Sequence[VllmServer], wanted: Sequence[Kind], *, count: int, seed: int
) -> dict[str, Row]:
    """Break answers of each kind `count` times by proxies."""
    rng = random.Random(seed)
    cuts = Cuts()
    async with contextlib.AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Cutter(engine.port, cuts)) for engine in engines]
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=TIME_LIMIT_S, headers=JSON))
        await house.engines({f"cut-{number}": proxy.address for number, proxy in enumerate(proxies)})
        trial = Trial(Asking(client, house), engines)
        await _until_it_serves(trial.asking, wanted[0])
        for kind in wanted:
            await _cut_one(trial, await trial.reference(kind), cuts, count=count, rng=rng)
    return trial.rows


async def _cut_one(trial: Trial, reference: Reference, cuts: Cuts, *, count: int, rng: random.Random) -> None:
    some = asyncio.Semaphore(AT_ONCE)
    hows = list(How)

    async def one(number: int, place: int) -> None:
        request_id = f"cut-{rng.getrandbits(64):016x}"
        planned = [Cut(place, rng.choice(hows))]
        if number % TWICE == TWICE - 1:
            planned.append(Cut(1 + rng.randrange(reference.events), rng.choice(hows)))
        cuts.planned[request_id] = list(planned)
        async with some:
            stream = await trial.asking.routed(request_id, reference.kind)
            if cuts.done[request_id]:
                story = " and ".join(f"{cut.how} after {cut.after} events" for cut in planned)
                await trial.judge(reference, stream, f"{story} ({request_id})", cuts.legs[request_id])

    async with asyncio.TaskGroup() as group:
        for number, place in enumerate(places(reference.events, count, rng)):
            group.create_task(one(number, place))


async def kill_all(
    house: House, engines: Sequence[VllmServer], wanted: Sequence[Kind], *, kills: Sequence[Kill], seed: int
) -> dict[str, Row]:
    """Kill one engine after the other, all kinds in turn on it. A killed one is started again, but for the last."""
    rng = random.Random(seed)
    fitting = [kind.longer(LONG_TOKENS) for kind in wanted if kind.has_one_form]
    rng.shuffle(fitting)
    async with httpx.AsyncClient(timeout=TIME_LIMIT_S, headers=JSON) as client:
        trial = Trial(Asking(client, house), engines)
        for number, how in enumerate(kills):
            victim = engines[number % len(engines)]
            first = number * STREAMS
            chosen = [fitting[(first + at) % len(fitting)] for at in range(min(STREAMS, len(fitting)))]
            trial.engines = engines
            await _kill_one(trial, house, victim, chosen, how=how, after=AFTER[number % len(AFTER)])
            victim.kill_group()  # a server whose core is gone lives on for some seconds
            if number < len(kills) - 1:
                victim.start()
                await asyncio.to_thread(victim.wait_ready)
    return trial.rows


async def _kill_one(
    trial: Trial,
    house: House,
    victim: VllmServer,
    chosen: Sequence[Kind],
    *,
    how: Kill,
    after: int,
) -> None:
    references = [await trial.reference(kind) for kind in chosen]
    addresses = {f"kill-{number}": f"127.0.0.1:{engine.port}" for number, engine in enumerate(trial.engines)}
    await house.engines({name: address for name, address in addresses.items() if address.endswith(f":{victim.port}")})
    await _until_it_serves(trial.asking, chosen[0])
    async with asyncio.TaskGroup() as group:
        tasks = {
            f"kill-{victim.pid}-{number}": group.create_task(
                trial.asking.routed(f"kill-{victim.pid}-{number}", reference.kind)
            )
            for number, reference in enumerate(references)
        }
        seen = trial.asking.seen
        while any(seen.get(name, 0) < after and not task.done() for name, task in tasks.items()):
            await asyncio.sleep(0.005)
        core = victim.core_pid()
        os.kill(core, signal.SIGSTOP)  # on a busy machine all would be over before the other engine is known
        await house.engines(addresses)
        hit = {name: events for name, events in seen.items() if not tasks[name].done()}
        if how is Kill.CORE:
            os.kill(core, signal.SIGKILL)
        else:
            victim.kill_group()
    trial.engines = [engine for engine in trial.engines if engine is not victim]
    for (name, task), reference in zip(tasks.items(), references, strict=True):
        if name in hit:
            await trial.judge(reference, task.result(), f"{how} after {hit[name]} events ({name})")


async def _until_it_serves(asking: Asking, kind: Kind) -> None:
    async with asyncio.timeout(TIME_LIMIT_S):
        while isinstance(read(await asking.routed("warm-up", kind)), Ended):
            await asyncio.sleep(0.1)


def table(cut: dict[str, Row], killed: dict[str, Row]) -> str:
    lines = ["| kind | cut: exact / tried | killed: exact / tried | legs after a cut |", "|---|---|---|---|"]
    for name in cut | killed:
        ways = cut[name].ways if name in cut else {}
        legs = ", ".join(f"{count} {way}" for way, count in sorted(ways.items()))
        lines.append(f"| {name} | {_cell(cut.get(name))} | {_cell(killed.get(name))} | {legs} |")
    lines.append(f"| all | {_cell(_sum(cut))} | {_cell(_sum(killed))} | |")
    return "\n".join(lines)


def wrong(*parts: dict[str, Row]) -> list[str]:
    return [line for rows in parts for row in rows.values() for line in row.wrong]


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    others = [f"{count} {name}" for name, count in sorted(row.verdicts.items()) if name != "exact"]
    return ", ".join([f"{row.exact} / {row.tried}", *others])


def _sum(rows: dict[str, Row]) -> Row:
    whole = Row("all")
    for row in rows.values():
        whole.verdicts += row.verdicts
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.vllm.equivalence", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--cuts", type=int, default=20, help="for each kind")
    parser.add_argument("--kills", type=int, default=4, help="of engines")
    parser.add_argument("--only", default="", help="kinds with this in their name")
    parser.add_argument("--reasoning", action="store_true", help="engines with a parser for thoughts")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if not available():
        sys.exit(REMEDY)
    flags = GENERATE + (REASONING if args.reasoning else ())
    engines = start_all(VllmServer(flags), VllmServer(flags))
    try:
        wanted = reasoning_kinds() if args.reasoning else kinds(*stops(engines[0]))
        return _run(engines, [kind for kind in wanted if args.only in kind.name], args)
    finally:
        for engine in engines:
            engine.stop()


def _run(engines: Sequence[VllmServer], wanted: Sequence[Kind], args: argparse.Namespace) -> int:
    house = House().start()
    try:
        cut = asyncio.run(cut_all(house, engines, wanted, count=args.cuts, seed=args.seed)) if args.cuts else {}
        kills = [list(Kill)[number % len(Kill)] for number in range(args.kills)]
        killed = asyncio.run(kill_all(house, engines, wanted, kills=kills, seed=args.seed)) if kills else {}
    finally:
        house.close()
    print(table(cut, killed))
    for line in wrong(cut, killed):
        print(line)
    return 1 if wrong(cut, killed) else 0


if __name__ == "__main__":
    sys.exit(main())

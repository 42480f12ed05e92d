"""Mixed load with clients that leave at random moments; afterwards every count must be zero, every request on record.

    python -m loadtest.soak --requests 10000
    python -m loadtest.soak --seconds 1200 --faults

A third of the clients leave: before the answer's head, waiting for the first token, in mid-stream, or while a whole
answer is made. Then it asks the router's /metrics and the engines' /sim/stats whether anything is still counted as
running, compares memory with what it was after the first fifth, and looks for exactly one line per request in the usage
journal. What is wrong is listed in sentences; exit code 1 if anything is.
"""

from __future__ import annotations

import argparse
import asyncio
import enum
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import uvloop

from loadtest import traffic
from loadtest.client import Client, Exchange, Recorder
from loadtest.measures import quantile
from loadtest.processes import memory_bytes
from loadtest.rig import Rig, rig
from wire.usage import decode_line

ZERO_GAUGES = (
    "switchyard_in_flight",
    "switchyard_open_requests",
    "switchyard_held_requests",
    "switchyard_engine_connections_busy",
)
QUIET_LIMIT_S = 15.0
MEMORY_ALLOWANCE_BYTES = 8 * 2**20
"""Above the level after the first fifth, or a tenth of it if that is more: allocators keep what they once had."""
FAULTS: tuple[dict[str, object], ...] = (
    {"kind": "cut", "after_tokens": 3, "probability": 0.02},
    {"kind": "error", "status": 503, "probability": 0.02},
    {"kind": "reset", "after_tokens": 1, "probability": 0.01},
)


class Leave(enum.StrEnum):
    """When a client goes away."""

    NEVER = "never"
    BEFORE_HEAD = "before the head of the answer"
    BEFORE_TOKEN = "waiting for the first token"
    MID_STREAM = "in mid-stream"
    WHOLE = "while a whole answer is made"


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent. The same mix sends the same requests in the same order."""

    requests: int = 10_000
    """0: until the time is over."""
    seconds: float = 0.0
    concurrency: int = 48
    leaving: float = 1 / 3
    whole: float = 0.3
    """Share of requests without streaming."""
    max_tokens: int = 24
    faults: bool = False
    """Engines break some answers: then a broken answer is reported and is no problem in itself."""
    seed: int = 1


class Outcome(msgspec.Struct, kw_only=True):
    sent: int = 0
    left: Counter[str] = msgspec.field(default_factory=Counter)
    errors: Counter[str] = msgspec.field(default_factory=Counter)
    """Answers that should have come whole and did not, by what was seen."""
    first_event_s: list[float] = msgspec.field(default_factory=list)
    memory: list[int] = msgspec.field(default_factory=list)
    """Bytes of the router, sampled evenly."""
    problems: list[str] = msgspec.field(default_factory=list)
    seconds: float = 0.0


class Wish(msgspec.Struct, frozen=True):
    """One request to come and when its client will leave."""

    request_id: str
    body: dict[str, Any]
    leave: Leave
    patience_s: float
    events: int


def wishes(mix: Mix, model: str) -> Iterator[Wish]:
    rng = random.Random(mix.seed)
    lengths = traffic.Lengths("azure-conv", rng, max_prompt=400, max_output=mix.max_tokens)
    number = 0
    while not mix.requests or number < mix.requests:
        prompt, tokens = lengths.draw()
        whole = rng.random() < mix.whole
        body = {
            "model": model,
            "messages": [{"role": "user", "content": traffic.filler(rng.randrange(64), prompt)}],
            "max_tokens": tokens,
            "stream": not whole,
        }
        leave = Leave.NEVER
        if rng.random() < mix.leaving:
            ways = (Leave.WHOLE,) if whole else (Leave.BEFORE_HEAD, Leave.BEFORE_TOKEN, Leave.MID_STREAM)
            leave = rng.choice(ways)
        patience = rng.uniform(0.0, 0.15) if leave is Leave.WHOLE else rng.uniform(0.0, 0.02)
        yield Wish(f"soak-{mix.seed}-{number}", body, leave, patience, rng.randint(1, max(1, tokens - 1)))
        number += 1


async def soak(target: Rig, mix: Mix) -> Outcome:
    """Send the mix, wait until all is quiet, and say what is not as it must be."""
    outcome = Outcome()
    before = await _counted(target)
    began = monotonic()
    todo = wishes(mix, target.model)

    async def client() -> None:
        for wish in todo:
            if mix.seconds and monotonic() - began > mix.seconds:
                return
            outcome.sent += 1
            await _one(target.client, wish, outcome)

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.25)
            outcome.memory.append(memory_bytes(target.router.pid))

    async with asyncio.TaskGroup() as group:
        watcher = group.create_task(watch())
        callers = [group.create_task(client()) for _ in range(mix.concurrency)]
        await asyncio.wait(callers)
        watcher.cancel()
    outcome.seconds = monotonic() - began
    outcome.problems += await _not_quiet(target, before)
    outcome.problems += grown(outcome.memory)
    outcome.problems += not_once(journalled(target.journal), mix, outcome.sent)
    if outcome.errors:
        outcome.problems.append(f"{outcome.errors.total()} answers broke for clients that stayed")
    return outcome


async def _one(client: Client, wish: Wish, outcome: Outcome) -> None:
    request = client.encode("/v1/chat/completions", wish.body, headers={"x-request-id": wish.request_id})
    recorder = Recorder(stamps=False)
    exchange = await client.open(request, recorder=recorder)
    try:
        async with asyncio.timeout(60):
            await _until_it_leaves(exchange, wish)
    except TimeoutError:
        outcome.errors["no end after 60 s"] += 1
    if wish.leave is not Leave.NEVER:
        outcome.left[wish.leave if exchange.total_s < 0 else "had its answer before it left"] += 1
    elif (wish.body["stream"] and not exchange.complete) or exchange.status != 200:
        outcome.errors[f"status {exchange.status} {exchange.error or 'without [DONE]'}"] += 1
    outcome.first_event_s += recorder.first_event_s
    exchange.abort()


async def _until_it_leaves(exchange: Exchange, wish: Wish) -> None:
    match wish.leave:
        case Leave.NEVER:
            await exchange.ended()
        case Leave.BEFORE_HEAD:
            await asyncio.sleep(wish.patience_s / 10)
        case Leave.BEFORE_TOKEN | Leave.WHOLE:
            await asyncio.sleep(wish.patience_s)
        case Leave.MID_STREAM:
            await exchange.reached(wish.events)


async def _not_quiet(target: Rig, before: dict[str, float]) -> list[str]:
    """What is still counted as running when nothing runs any more."""
    deadline = monotonic() + QUIET_LIMIT_S
    while True:
        busy = {name: n for name, n in (await _counted(target)).items() if n > before.get(name, 0.0)}
        if not busy or monotonic() > deadline:
            return [f"{name} is still {n:g} after {QUIET_LIMIT_S:g} s without a request" for name, n in busy.items()]
        await asyncio.sleep(0.2)


async def _counted(target: Rig) -> dict[str, float]:
    """All that must return to zero, by name."""
    page = (await target.client.get("/metrics")).text().decode()
    found = {name: gauge(page, name) for name in ZERO_GAUGES}
    for number, engine in enumerate(target.engines):
        stats = msgspec.json.decode((await engine.get("/sim/stats")).text())
        found[f"requests at engine {number}"] = float(stats["active"])
    return found


def gauge(page: str, name: str) -> float:
    """The sum of a metric over its labels; 0 if it is not there."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", page, re.MULTILINE))


def grown(samples: Sequence[int]) -> list[str]:
    if len(samples) < 10:
        return []
    fifth = len(samples) // 5
    settled, last = max(samples[: 2 * fifth]), max(samples[-fifth:])
    if last - settled <= max(MEMORY_ALLOWANCE_BYTES, settled // 10):
        return []
    return [f"memory grew from {settled / 2**20:.0f} MiB after the first fifths to {last / 2**20:.0f} MiB"]


def journalled(directory: Path) -> Counter[str]:
    """How often each request id stands in the journal; a line cut short by a crash counts as none."""
    found: Counter[str] = Counter()
    for path in sorted(directory.glob("usage-*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                found[decode_line(line).request_id] += 1
            except msgspec.DecodeError:
                continue
    return found


def not_once(found: Counter[str], mix: Mix, sent: int) -> list[str]:
    """Requests that are not in the journal, or more than once."""
    ids = [f"soak-{mix.seed}-{number}" for number in range(sent)]
    missing = [request_id for request_id in ids if not found[request_id]]
    twice = [request_id for request_id in ids if found[request_id] > 1]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {sent} requests are not in the journal, such as {missing[0]}")
    if twice:
        problems.append(f"{len(twice)} requests are in the journal more than once, such as {twice[0]}")
    return problems


def fifths(times_s: Sequence[float]) -> list[str]:
    """Median and p99 of each fifth of the run, in ms: whether it gets slower."""
    size = max(1, len(times_s) // 5)
    parts = [times_s[at : at + size] for at in range(0, 5 * size, size) if times_s[at : at + size]]
    return [" / ".join(f"{1e3 * quantile(part, q):.0f}" for q in (0.5, 0.99)) for part in parts]


def story(outcome: Outcome) -> str:
    """For people."""
    samples = outcome.memory or [0]
    settled, last = samples[len(samples) // 5] / 2**20, samples[-1] / 2**20
    p50, p99 = (1e3 * quantile(outcome.first_event_s, q) for q in (0.5, 0.99))
    lines = [
        f"{outcome.sent} requests in {outcome.seconds:.0f} s; first event p50 / p99 {p50:.0f} / {p99:.0f} ms",
        f"  fifth by fifth: {', '.join(fifths(outcome.first_event_s))} ms",
        *(f"  {n:6d} left {when}" for when, n in sorted(outcome.left.items())),
        *(f"  {n:6d} broken: {what}" for what, n in outcome.errors.most_common(8)),
        f"router memory {settled:.0f} MiB after a fifth, {last:.0f} MiB at the end",
        *(f"PROBLEM: {problem}" for problem in outcome.problems),
    ]
    return "\n".join(lines if outcome.problems else [*lines, "nothing is left counted; one journal line per request"])


async def _run(args: argparse.Namespace) -> Outcome:
    mix = Mix(
        requests=0 if args.seconds else args.requests,
        seconds=args.seconds,
        concurrency=args.concurrency,
        seed=args.seed,
        faults=args.faults,
    )
    faults = [part for fault in FAULTS for part in ("--fault", msgspec.json.encode(fault).decode())]
    options = ("--profile", "paced", "--time-scale", "0.5", *(faults if args.faults else ()))
    with tempfile.TemporaryDirectory(prefix="soak-") as at:
        async with rig(Path(at), replicas=args.replicas, engine_options=options) as target:
            return await soak(target, mix)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=0.0, help="run this long instead of a number of requests")
    parser.add_argument("--concurrency", type=int, default=48)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", action="store_true", help="engines cut, reset and refuse some answers")
    outcome = uvloop.run(_run(parser.parse_args(argv)))
    print(story(outcome))
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())

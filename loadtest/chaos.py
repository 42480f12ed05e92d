"""Break everything that can be broken while streams run, and count what their clients noticed.

    python -m loadtest.chaos --streams 1000 --replicas 12 --seed 1
    python -m loadtest.chaos --sampled --stream-interval 4      # a quarter left to chance; tokens in bundles of four

Streams at temperature 0, each with a prompt of its own and a known answer, over node agents with simulated engines.
Those that are left to chance (`--sampled`) are compared in their ends and counts only.
All along engines are killed and stopped, whole nodes fall silent or lose their packets to router or registry (needs
root), agents and the registry die and return, and engines cut, reset, stall, garble, abort and refuse. Enough replicas
are left alone at any moment to serve: where capacity remains no client may see an error, and no token may be lost or
come twice. Exit code 1 if one did.

What is broken when follows from the seed; how the processes meet it does not, so two runs are alike, never equal.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import uvloop

from loadtest import network
from loadtest.house import House, Size, hosts, house
from loadtest.measures import quantile
from loadtest.network import Network
from loadtest.witness import Seen, Wish, references, stream, wishes
from wire.records import ModelState

SOFT: tuple[dict[str, Any], ...] = (
    {"kind": "cut"},
    {"kind": "reset"},
    {"kind": "stall"},
    {"kind": "malformed"},
    {"kind": "engine_dead"},
    {"kind": "abort"},
    {"kind": "no_done"},
    {"kind": "empty"},
    {"kind": "error", "status": 500},
    {"kind": "error", "status": 503},
    {"kind": "error", "status": 429, "retry_after_s": 1},
    {"kind": "crash", "duration_s": 1.0},
    {"kind": "refuse", "duration_s": 1.0},
)
"""Faults of the simulated engine; those within an answer strike after some of its tokens."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    streams: int = 1000
    nodes: int = 3
    replicas: int = 4
    """Of each node."""
    seed: int = 1
    concurrency: int = 100
    tokens: tuple[int, int] = (60, 160)
    every_s: float = 0.35
    """Between two breakages."""
    registry: bool = True
    """Is broken too."""
    sampled: bool = False
    """A quarter of the streams is left to chance."""
    stream_interval: int = 1
    """Tokens in an event of the engines."""
    partitions: bool = False
    """Packets are lost too, between hosts of their own (network.py)."""


class Outcome(msgspec.Struct, kw_only=True):
    broken: Counter[str] = msgspec.field(default_factory=Counter)
    seen: list[Seen] = msgspec.field(default_factory=list)
    legs: dict[str, int] = {}
    """Attempts by kind and code, as the router counts them."""
    left: dict[str, float] = {}
    """Still counted as running at the end."""
    unready: list[str] = []
    """Replicas that did not come back."""
    seconds: float = 0.0

    @property
    def errors(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.error]

    @property
    def unequal(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.differences]

    @property
    def good(self) -> bool:
        return not (self.errors or self.unequal or self.left or self.unready)


class Breaker:
    """Breaks something every so often, and mends it. At most half of the replicas are disturbed at once."""

    def __init__(self, at: House, plan: Plan, outcome: Outcome) -> None:
        self._house, self._plan, self._outcome = at, plan, outcome
        self._rng = random.Random(plan.seed)
        self._disturbed: dict[str, float] = {}
        """Replica and until when."""
        self._away: set[str] = set()
        """Agents and the registry, while they are down."""
        self._stop = asyncio.Event()

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        """Until stopped; returns with everything mended."""
        ways: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._soft, 10),
            (self._kill_engine, 3),
            (self._stop_engine, 2),
            (self._silence_node, 2 if self._plan.partitions else 4),
            (self._cut_node_off, 4 if self._plan.partitions else 0),
            (self._kill_agent, 1),
            (self._kill_registry, 1 if self._plan.registry else 0),
        ]
        chosen, weights = zip(*ways, strict=True)
        async with asyncio.TaskGroup() as group:
            while not self._stop.is_set():
                group.create_task(self._rng.choices(chosen, weights)[0]())
                await asyncio.sleep(self._plan.every_s)

    async def _soft(self) -> None:
        fault = dict(self._rng.choice(SOFT))
        fault.setdefault("remaining", self._rng.randint(1, 4))
        if fault["kind"] in ("crash", "refuse"):
            replica = self._pick(2.0)
        else:
            replica = self._rng.choice(self._house.replica_names())
            fault["after_tokens"] = self._rng.randint(1, 50)
        if self._disturbed.get(replica, 0.0) > monotonic() and fault["kind"] not in ("crash", "refuse"):
            return
        address = await self._address(replica)
        if address and await self._house.fault(address, **fault):
            self._outcome.broken[f"engine: {fault['kind']} {fault.get('status', '')}".strip()] += 1

    async def _kill_engine(self) -> None:
        if replica := self._pick(4.0):
            self._signal(replica, signal.SIGKILL)
            self._outcome.broken["kill -9 of an engine"] += 1

    async def _stop_engine(self) -> None:
        for_s = self._rng.uniform(3.0, 6.0)
        if replica := self._pick(for_s + 1.0):
            self._signal(replica, signal.SIGSTOP)
            self._outcome.broken["SIGSTOP of an engine"] += 1
            await asyncio.sleep(for_s)
            self._signal(replica, signal.SIGCONT)

    async def _silence_node(self) -> None:
        """Connections stay open, the kernel acknowledges, and nobody answers."""
        node, for_s, members = self._pick_node()
        if not node:
            return
        self._outcome.broken["a whole node silent"] += 1
        for number in (signal.SIGSTOP, signal.SIGCONT):
            self._house.signal(node, number)
            for member in members:
                self._signal(member, number)
            await asyncio.sleep(for_s if number is signal.SIGSTOP else 0.0)
        self._away.discard(node)

    async def _cut_node_off(self) -> None:
        """Connections stay open, and no packet arrives."""
        assert self._house.network is not None
        node, for_s, _ = self._pick_node()
        if not node:
            return
        others = self._rng.choice((("router",), ("registry",), ("router", "registry")))
        self._outcome.broken[f"a node cut off from {' and '.join(others)}"] += 1
        self._house.network.cut(node, *others)
        await asyncio.sleep(for_s)
        self._house.network.heal(node, *others)
        await asyncio.sleep(2.0)
        self._away.discard(node)

    async def _kill_agent(self) -> None:
        node, for_s = self._rng.choice(self._house.nodes), self._rng.uniform(0.5, 4.0)
        if self._away:
            return
        self._away.add(node)
        self._outcome.broken["kill -9 of an agent"] += 1
        await self._house.kill(node)
        await asyncio.sleep(for_s)
        self._house.start_agent(node)
        await asyncio.sleep(2.0)
        self._away.discard(node)

    async def _kill_registry(self) -> None:
        if self._away:
            return
        self._away.add("registry")
        self._outcome.broken["kill -9 of the registry"] += 1
        await self._house.kill("registry")
        await asyncio.sleep(self._rng.uniform(1.0, 5.0))
        self._house.start_registry()
        await asyncio.sleep(3.0)
        self._away.discard("registry")

    def _pick_node(self) -> tuple[str, float, list[str]]:
        """A node nobody disturbs, for how long it will be, and its replicas; no name when there is none."""
        node, for_s = self._rng.choice(self._house.nodes), self._rng.uniform(3.0, 6.0)
        members = [name for name in self._house.replica_names() if name.startswith(f"{node}.")]
        if node in self._away or not self._reserve(members, for_s + 3.0):
            return "", 0.0, []
        self._away.add(node)
        return node, for_s, members

    def _pick(self, for_s: float) -> str:
        """A replica nobody disturbs, from now on disturbed; empty when enough of them are."""
        replica = self._rng.choice(self._house.replica_names())
        return replica if self._reserve([replica], for_s) else ""

    def _reserve(self, replicas: Sequence[str], for_s: float) -> bool:
        now = monotonic()
        self._disturbed = {name: until for name, until in self._disturbed.items() if until > now}
        total = len(self._house.replica_names())
        if len(self._disturbed) + len(replicas) > total / 2 or self._disturbed.keys() & set(replicas):
            return False
        self._disturbed |= dict.fromkeys(replicas, now + for_s)
        return True

    async def _address(self, replica: str) -> str:
        state = self._house.engine(replica) if replica else {}
        return f"{state['host']}:{state['port']}" if state else ""

    def _signal(self, replica: str, number: signal.Signals) -> None:
        if self._house.engine(replica).get("pid"):
            self._house.signal(replica, number)


async def chaos(at: House, plan: Plan, wished: Sequence[Wish], right: Sequence[Any]) -> Outcome:
    outcome, began = Outcome(), monotonic()
    breaker = Breaker(at, plan, outcome)
    room = asyncio.Semaphore(plan.concurrency)

    async def one(number: int) -> None:
        async with room:
            outcome.seen.append(await stream(at.client, wished[number], right[number]))

    async with asyncio.TaskGroup() as group:
        breaking = group.create_task(breaker.run())
        await asyncio.wait([group.create_task(one(number)) for number in range(len(wished))])
        breaker.stop()
        await breaking
    outcome.seconds = monotonic() - began
    outcome.left = await at.quiet()
    outcome.legs = attempts(await at.metrics())
    outcome.unready = await _unready(at)
    return outcome


def attempts(page: dict[str, float]) -> dict[str, int]:
    """What the router says of its attempts, by kind and code."""
    start = "switchyard_attempts_total{"
    return {name[len(start) : -1]: int(n) for name, n in sorted(page.items()) if name.startswith(start)}


async def _unready(at: House, limit_s: float = 20.0) -> list[str]:
    deadline = monotonic() + limit_s
    while True:
        records = await at.replicas()
        missing = [
            name
            for name in at.replica_names()
            if name not in records or records[name].state is not ModelState.READY or not at.engine(name)
        ]
        if not missing or monotonic() > deadline:
            return missing
        await asyncio.sleep(0.2)


def story(outcome: Outcome) -> str:
    """For people."""
    gaps = [seen.gap_s for seen in outcome.seen]
    disturbed = [gap for gap in gaps if gap > 0.5]
    lines = [
        f"{len(outcome.seen)} streams in {outcome.seconds:.0f} s, {outcome.broken.total()} breakages:",
        *(f"  {n:5d} {what}" for what, n in outcome.broken.most_common()),
        "attempts: " + ", ".join(f"{n} {name}" for name, n in outcome.legs.items()),
        f"errors seen by clients: {len(outcome.errors)}; streams with a lost or doubled token: {len(outcome.unequal)}",
        f"longest gap of a stream: {_spread(gaps)}",
        f"of the {len(disturbed)} with a gap over 0.5 s: {_spread(disturbed)}",
    ]
    lines += [f"ERROR {seen.wish.path}: {seen.error}" for seen in outcome.errors[:20]]
    lines += [f"UNEQUAL {seen.wish.path}: {'; '.join(seen.differences)}" for seen in outcome.unequal[:20]]
    lines += [f"STILL COUNTED {name}: {n:g}" for name, n in outcome.left.items()]
    lines += [f"NOT BACK {name}" for name in outcome.unready]
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "none"
    return f"p50 {quantile(values, 0.5):.2f} s, p99 {quantile(values, 0.99):.2f} s, worst {max(values):.2f} s"


async def run(plan: Plan, directory: Path) -> Outcome:
    wished = wishes(plan.streams, seed=plan.seed, tokens=plan.tokens, sampled=plan.sampled)
    right = await references(directory, wished)
    bundles = ("--stream-interval", str(plan.stream_interval))
    size = Size(nodes=plan.nodes, replicas=plan.replicas, engine_args=(*Size().engine_args, *bundles))
    with Network(hosts(size)) if plan.partitions else nullcontext() as wires:
        async with house(directory, size, network=wires) as at:
            return await chaos(at, plan, wished, right)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--replicas", type=int, default=12, help="on three nodes")
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sampled", action="store_true", help="leave a quarter of the streams to chance")
    parser.add_argument("--stream-interval", type=int, default=1, help="tokens in an event of the engines")
    parser.add_argument("--keep", default="", metavar="DIR", help="leave logs and state there")
    args = parser.parse_args(argv)
    if why := network.missing():
        print(f"without partitions: {why}", file=sys.stderr)
    plan = Plan(
        streams=args.streams,
        replicas=-(-args.replicas // 3),
        seed=args.seed,
        concurrency=args.concurrency,
        sampled=args.sampled,
        stream_interval=args.stream_interval,
        partitions=not why,
    )
    with tempfile.TemporaryDirectory(prefix="chaos-") as made:
        directory = Path(args.keep or made)
        directory.mkdir(parents=True, exist_ok=True)
        outcome = uvloop.run(run(plan, directory))
    print(story(outcome))
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())

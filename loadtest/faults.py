"""What the loss of each part of the house does to running and to new requests.

    python -m loadtest.faults            # all of it, as a table
    python -m loadtest.faults --away 30  # agent and registry stay away for so long

In each case long streams with known answers run, a small new request is sent every 50 ms, and something breaks under
them (breaks.py) and comes back. The table says what clients saw and how long it took until records, view and counts
were right again. router/FAULTS.md keeps one such table; tests/integration/test_house_faults.py asserts its claims.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import msgspec
import uvloop

from loadtest import clocks, network
from loadtest.answers import Answer
from loadtest.breaks import FAULTS
from loadtest.house import House, Size, eventually, hosts, house
from loadtest.network import Network
from loadtest.witness import Seen, Trickle, Wish, references, stream, wishes
from wire.records import Replica, Router, prefix
from wire.registry import RegistryError

STREAMS = 8
TOKENS = (65, 80)
"""Almost four seconds of stream."""
BEFORE_S = 1.0


class Lived(msgspec.Struct, kw_only=True):
    """What clients lived through, and what was left behind."""

    fault: str
    streams: list[Seen]
    trickle: Trickle
    recovery_s: float
    """From the moment the part was back until everything was right again."""
    left: dict[str, float]
    """Still counted as running after that."""
    resumed: float = 0.0
    """Streams that the router continued on another engine."""
    unmetered: float = 0.0
    """Requests without a record in the router's journal, of those that it answered in one life."""
    before: dict[str, Replica] = {}
    after: dict[str, Replica] = {}
    """What the registry said of the engines."""

    @property
    def broken(self) -> list[Seen]:
        return [seen for seen in self.streams if seen.error or seen.differences]

    @property
    def gap_s(self) -> float:
        return max(seen.gap_s for seen in self.streams)

    def row(self) -> str:
        whole = len(self.streams) - len(self.broken)
        running = f"{whole} of {len(self.streams)} whole and equal, {max(0.0, self.resumed):g} continued, "
        running += f"longest gap {self.gap_s:.1f} s"
        tries, errors = len(self.trickle.tries), len(self.trickle.errors)
        new = f"{errors} of {tries} failed" + (f", all for {self.trickle.failing_s():.1f} s" if errors else "")
        return f"| {self.fault} | {running} | {new}, slowest {self.trickle.slowest_s:.1f} s | {self.recovery_s:.1f} s |"


async def live_through(
    at: House, fault: str, *, wished: Sequence[Wish], right: Sequence[Answer], away_s: float = 4.0
) -> Lived:
    before = await at.replicas()
    resumed, journal = await at.resumed(), at.journal_lines()
    trickle = Trickle(at.client, every_s=0.05)
    async with asyncio.TaskGroup() as group:
        trickling = group.create_task(trickle.run())
        running = [group.create_task(stream(at.client, *pair)) for pair in zip(wished, right, strict=True)]
        await asyncio.sleep(BEFORE_S)
        await FAULTS[fault].breaks(at, away_s)
        back_at = monotonic()
        await whole(at)
        recovery_s = monotonic() - back_at
        await asyncio.wait(running)
        trickle.stop()
        await trickling
    return Lived(
        fault=fault,
        streams=[task.result() for task in running],
        trickle=trickle,
        recovery_s=recovery_s,
        left=await at.quiet(),
        resumed=await at.resumed() - resumed,
        unmetered=len(running) + len(trickle.tries) - (at.journal_lines() - journal),
        before=before,
        after=await at.replicas(),
    )


async def whole(at: House) -> None:
    """Until registry and router know all that is there again, and nothing that is not."""
    await at.all_ready()

    async def seen() -> bool:
        page = await at.metrics()
        reporting = page.get("switchyard_nodes_reporting", 0.0) == len(at.nodes)
        unwritten = page.get("switchyard_journal_pending", 0.0)
        return reporting and page.get("switchyard_registry_connected", 0.0) == 1.0 and not unwritten

    async def routers() -> bool:
        try:
            return len((await at.store.list(prefix(Router))).entries) == 1
        except RegistryError:
            return False

    await eventually(seen, why="the router follows registry and nodes")
    await eventually(routers, why="the registry knows the one router")


async def run(directory: Path, faults: Sequence[str], *, away_s: float, etcd: bool = True) -> list[Lived]:
    """Each kind of house is built once, for all the faults that want it."""
    wished = wishes(STREAMS, seed=1, tokens=TOKENS)
    right = await references(directory, wished)
    lived = []
    for kind, wanted in sorted(_by_kind(faults).items()):
        if kind.missing:
            print(f"left out, {kind.missing}: {'; '.join(wanted)}", file=sys.stderr)
            continue
        size = Size(nodes=2, etcd=etcd, clocks=kind.clocks)
        with Network(hosts(size)) if kind.network else nullcontext() as wires:
            place = directory / kind.name
            place.mkdir()
            async with house(place, size, network=wires) as at:
                for fault in wanted:
                    lived.append(await live_through(at, fault, wished=wished, right=right, away_s=away_s))
                    print(lived[-1].row(), flush=True)
    return lived


class Kind(NamedTuple):
    """Of house."""

    network: bool
    clocks: bool

    @property
    def name(self) -> str:
        return "hosts" if self.network else "clocks" if self.clocks else "plain"

    @property
    def missing(self) -> str:
        """Why there can be none here."""
        return (network.missing() if self.network else "") or (clocks.missing() if self.clocks else "")


def _by_kind(faults: Sequence[str]) -> dict[Kind, list[str]]:
    found: dict[Kind, list[str]] = {}
    for name in faults:
        found.setdefault(Kind(FAULTS[name].network, FAULTS[name].clocks), []).append(name)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.faults", description=(__doc__ or "").splitlines()[0])
    only = f"may be repeated (default: all): {'; '.join(sorted(FAULTS))}"
    parser.add_argument("--away", type=float, default=4.0, metavar="SECONDS", help="of agent and registry")
    parser.add_argument("--only", action="append", default=[], choices=sorted(FAULTS), metavar="FAULT", help=only)
    parser.add_argument("--embedded", action="store_true", help="the embedded registry, which forgets leased records")
    args = parser.parse_args(argv)
    print("| what breaks | running streams | new requests | right again after |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="faults-") as at:
        wanted = args.only or list(FAULTS)
        lived = uvloop.run(run(Path(at), wanted, away_s=args.away, etcd=not args.embedded))
    return 1 if any(one.left for one in lived) else 0


if __name__ == "__main__":
    sys.exit(main())

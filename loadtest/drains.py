"""Drain every node of a house in turn, at once, while streams run: nobody may notice.

    python -m loadtest.drains            # 3 nodes, 24 streams; says the longest gap of any stream

Uses the public commands: `switchyard drain NODE --now` and `switchyard undrain NODE`.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop

from loadtest.answers import Answer
from loadtest.house import ROOT, House, Size, eventually, house
from loadtest.witness import Seen, Trickle, Wish, references, stream, wishes

STREAMS = 24
TOKENS = (80, 200)
COMMAND_LIMIT_S = 30.0


class Drained(msgspec.Struct, kw_only=True):
    streams: list[Seen] = []
    trickle: Trickle
    said: dict[str, str] = {}
    """What each command printed, where it failed."""
    running: dict[str, float] = {}
    """Requests counted on a drained node when its drain said that it was done."""
    moved: int = 0
    """Attempts that ended because their replica was drained."""
    left: dict[str, float] = {}

    @property
    def gap_s(self) -> float:
        return max(seen.gap_s for seen in self.streams)

    @property
    def broken(self) -> list[Seen]:
        return [seen for seen in self.streams if seen.error or seen.differences]


async def command(at: House, *words: str) -> str:
    """Empty when it went well, else what it printed."""
    argv = [sys.executable, "-m", "control.cli", *words, "--registry-endpoints", at.registry]
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "HOME": str(at.directory)}

    def finished() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(argv, env=env, capture_output=True, timeout=COMMAND_LIMIT_S, check=False)

    done = await asyncio.to_thread(finished)
    return "" if done.returncode == 0 else (done.stdout + done.stderr).decode()


async def rolling_drain(at: House, *, wished: Sequence[Wish], right: Sequence[Answer]) -> Drained:
    """New streams begin all along; each node is emptied, seen to be empty, and taken back."""
    trickle = Trickle(at.client, every_s=0.05)
    found = Drained(trickle=trickle)
    rounds = len(at.nodes) + 1
    async with asyncio.TaskGroup() as group:
        trickling = group.create_task(trickle.run())
        running: list[asyncio.Task[Seen]] = []
        for number in range(rounds):
            chosen = range(number, len(wished), rounds)
            running += [group.create_task(stream(at.client, wished[i], right[i])) for i in chosen]
            if number < len(at.nodes):
                await _drain(at, at.nodes[number], found)
        await asyncio.wait(running)
        trickle.stop()
        await trickling
    found.streams = [task.result() for task in running]
    found.left = await at.quiet()
    page = await at.metrics()
    found.moved = int(
        sum(n for name, n in page.items() if name.startswith("switchyard_attempts") and '"moved"' in name)
    )
    return found


async def _drain(at: House, node: str, found: Drained) -> None:
    await asyncio.sleep(0.7)
    if said := await command(at, "drain", node, "--now"):
        found.said[f"drain {node}"] = said
    for name, replica in (await at.replicas()).items():
        if replica.node == node and (active := (await at.engine_stats(replica.address)).get("active")):
            found.running[name] = float(active)
    if said := await command(at, "undrain", node):
        found.said[f"undrain {node}"] = said
    await at.all_ready()
    await eventually(lambda: _takes_requests(at, node), why=f"{node} takes requests again")


async def _takes_requests(at: House, node: str) -> bool:
    record = (await at.node_records()).get(node)
    return record is not None and not record.draining


def story(found: Drained) -> str:
    tries = len(found.trickle.tries)
    lines = [
        f"{len(found.streams)} streams, {found.moved} moved, longest gap {found.gap_s:.2f} s",
        f"{tries} new requests meanwhile, {len(found.trickle.errors)} failed, slowest {found.trickle.slowest_s:.2f} s",
        *(f"PROBLEM {name}: {said}" for name, said in found.said.items()),
        *(f"PROBLEM {name}: {n:g} requests after its drain" for name, n in found.running.items()),
        *(f"PROBLEM still counted: {name} {n:g}" for name, n in found.left.items()),
        *(f"PROBLEM {seen.error} {seen.differences}" for seen in found.broken),
    ]
    return "\n".join(lines)


async def run(directory: Path) -> Drained:
    wished = wishes(STREAMS, seed=1, tokens=TOKENS)
    right = await references(directory, wished)
    async with house(directory, Size(nodes=3)) as at:
        return await rolling_drain(at, wished=wished, right=right)


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m loadtest.drains", description=(__doc__ or "").splitlines()[0]).parse_args(
        argv
    )
    with tempfile.TemporaryDirectory(prefix="drains-") as at:
        found = uvloop.run(run(Path(at)))
    print(story(found))
    return 1 if found.said or found.running or found.left or found.broken or found.trickle.errors else 0


if __name__ == "__main__":
    sys.exit(main())

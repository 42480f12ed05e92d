"""What a decision costs, part by part, on one core: `python -m loadtest.bench_decision`.

Prints microseconds per call, the best of several rounds, for fleets of 16 to 10,000 replicas of one model and an 8 kB
prompt of which part is in some caches. Measures CPU of the production core; no I/O is involved.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import tracemalloc
from collections.abc import Callable

from router.core.affinity import EDGES, PrefixIndex, chain
from router.core.constants import Constants
from router.core.dispatch import CoreDispatcher
from router.core.model import Ending, Fleet, LoadReport, ReplicaLoad, Shape, Verdict
from wire.records import ModelState, Node, Replica

ROUNDS = 7


def fleet(size: int) -> Fleet:
    nodes = {
        f"n{i}": Node(node=f"n{i}", region="eu", address="127.0.0.1:1", device_class="h100-80g") for i in range(size)
    }
    replicas = {
        f"r{i}": Replica(
            replica=f"r{i}",
            node=f"n{i}",
            region="eu",
            model="m",
            address="127.0.0.1:2",
            state=ModelState.READY,
            device_class="h100-80g",
        )
        for i in range(size)
    }
    return Fleet(1, nodes, replicas)


def prompts(count: int, size: int, seed: int) -> list[bytes]:
    """Prompts with one system part in common, a session part that eight of them share, and an end of their own."""
    rng = random.Random(seed)
    system = rng.randbytes(size // 4)
    sessions = [rng.randbytes(size // 2) for _ in range(max(1, count // 8))]
    rest = size - size // 4 - size // 2
    return [system + rng.choice(sessions) + rng.randbytes(rest) for _ in range(count)]


def shapes(size: int, count: int = 512) -> list[Shape]:
    return [
        Shape(request_id=f"q{i}", model="m", prompt=prompt, max_tokens=200)
        for i, prompt in enumerate(prompts(count, size, seed=3))
    ]


def loaded(size: int, asked: list[Shape]) -> tuple[CoreDispatcher, float]:
    """A dispatcher in the middle of its work: caches known, every replica reported, some requests in flight."""
    core = CoreDispatcher(rng=random.Random(1))
    core.apply(fleet(size), 0.0)
    for i in range(size):
        load = ReplicaLoad(replica=f"r{i}", running=i % 7, waiting=i % 3, kv_use=0.1, kv_capacity_tokens=400_000)
        core.report(LoadReport(node=f"n{i}", epoch=1, sequence=1, replicas=(load,)), 1.0)
    now = 1.0
    for index in range(4 * size if size <= 1000 else 4000):
        shape = asked[index % len(asked)]
        decision = core.pick(shape, now=now)
        flight = core.begin(decision, shape, now)
        if index % 4:
            flight.first_token(now + 0.05)
            flight.end(Ending.COMPLETE, now + 0.06, prompt_tokens=2000, cached_tokens=500, output_tokens=100)
        now += 0.0001
    return core, now


def best(action: Callable[[int], object], count: int) -> float:
    """Microseconds per call, best round."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for index in range(count):
            action(index)
        times.append((time.process_time() - start) / count * 1e6)
    return min(times)


def measure(size: int, prompt_bytes: int) -> dict[str, float]:
    asked = shapes(prompt_bytes)
    core, now = loaded(size, asked)
    many = len(asked)
    group = core._belief.groups["m", False]
    keys = [chain("m", shape.prompt) for shape in asked]
    parts = {
        "hash": best(lambda i: chain("m", asked[i % many].prompt), many),
        "match": best(lambda i: group.index.match(keys[i % many]), many),
    }
    clock = now

    def pick(i: int) -> None:
        nonlocal clock
        clock += 1e-4  # 10,000 decisions a second: overdue rows are refreshed as they would be
        decision = core.pick(asked[i % many], now=clock)
        assert decision.verdict is Verdict.SEND

    parts["pick"] = best(pick, many)
    decisions = [core.pick(shape, now=clock) for shape in asked]
    marks: dict[str, list[float]] = {"begin": [], "first_token": [], "end": []}
    for _ in range(ROUNDS):
        start = time.process_time()
        flights = [core.begin(d, s, clock) for d, s in zip(decisions, asked, strict=True)]
        begun = time.process_time()
        for flight in flights:
            flight.first_token(clock + 0.05)
        told = time.process_time()
        for flight in flights:
            flight.end(Ending.COMPLETE, clock + 0.1, prompt_tokens=2000, cached_tokens=500, output_tokens=90)
        ended = time.process_time()
        for name, took in (("begin", begun - start), ("first_token", told - begun), ("end", ended - told)):
            marks[name].append(took / many * 1e6)
    parts |= {name: min(took) for name, took in marks.items()}
    reports = [
        LoadReport(
            node=f"n{i % size}",
            epoch=1,
            sequence=2 + i,
            replicas=(ReplicaLoad(replica=f"r{i % size}", running=3, kv_use=0.1, kv_capacity_tokens=400_000),),
        )
        for i in range(many * ROUNDS)
    ]
    stream = iter(reports)
    parts["report"] = best(lambda i: core.report(next(stream), clock), many)
    return parts


def index_memory(blocks: int, replicas: int) -> float:
    """Bytes per block key of a prefix index filled by chains of 8 kB."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    index = PrefixIndex()
    for row in range(replicas):
        index.add(row, capacity_bytes=1 << 40)
    count = 0
    while len(index) < blocks:
        index.insert(count % replicas, [hash((count, i)) for i in range(32)])
        count += 1
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / len(index)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench_decision", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 16, 64, 256, 1000, 10_000])
    parser.add_argument("--prompt-bytes", type=int, default=8192)
    arguments = parser.parse_args()
    print(f"prompt of {arguments.prompt_bytes} bytes, Python {sys.version.split()[0]}")
    print(f"microseconds of CPU per call, best of {ROUNDS} rounds; hash and match are parts of pick")
    print("replicas    pick    hash   match   begin     1st     end  report")
    for size in arguments.sizes:
        p = measure(size, arguments.prompt_bytes)
        print(
            f"{size:>8}  {p['pick']:6.1f}  {p['hash']:6.1f}  {p['match']:6.1f}  "
            f"{p['begin']:6.1f}  {p['first_token']:6.1f}  {p['end']:6.1f}  {p['report']:6.1f}"
        )
    total = Constants().prefix_blocks_total
    for replicas in (16, 1000):
        per_block = index_memory(100_000, replicas)
        print(
            f"prefix index, {replicas} replicas: {per_block:.0f} bytes per block of up to {EDGES[0]} bytes; "
            f"at most {total} blocks, {per_block * total / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    main()

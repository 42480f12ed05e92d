"""What a decision costs, part by part, on one core: `python -m loadtest.bench_decision`.

Prints microseconds per call, the best of several rounds, for fleets of 4 to 10,000 replicas of one model and an 8 kB
prompt of which part is in some caches. As in service: between two decisions a request begins, an earlier one has its
first token, another ends, and nodes report; `pick` contains what it makes anew because of them. Measures CPU of the
production core; no I/O is involved.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from typing import Any

from router.core.affinity import EDGES, PrefixIndex, chain
from router.core.constants import Constants
from router.core.dispatch import CoreDispatcher
from router.core.model import Ending, Fleet, Flight, LoadReport, ReplicaLoad, Shape, Verdict
from router.garbage import keep_out_of_the_way
from wire.records import ModelState, Node, Replica

ROUNDS = 7
DECISIONS_PER_S = 2000.0
"""Of one process, by its own clock: more than a router serves."""
REPORT_S = 0.25
FIRST_TOKEN_S = 0.05
ANSWER_S = 0.2
COUNTS = {"prompt_tokens": 2000, "cached_tokens": 500, "output_tokens": 100}


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


class Service:
    """A router's core at work: each request is decided and begun, while first tokens and ends of earlier ones and
    reports of all nodes come in between; whatever they leave to be made anew is part of the next decision."""

    def __init__(self, size: int, asked: list[Shape]) -> None:
        self.core, self.now = loaded(size, asked)
        self.asked, self.size = asked, size
        self.spent: dict[str, float] = {}
        """Seconds of CPU by part, and `count` of them below."""
        self.count: dict[str, int] = {}
        self._decided = self._reported = 0
        self._begun: deque[Flight] = deque()
        self._started: deque[Flight] = deque()
        self._idle_s = min(_nothing_s() for _ in range(200))

    def round(self, decisions: int) -> dict[str, float]:
        """Microseconds of CPU per call of each part."""
        self.spent, self.count = {}, {}
        for _ in range(decisions):
            self.now += 1.0 / DECISIONS_PER_S
            self._reports()
            shape = self.asked[self._decided % len(self.asked)]
            decision = self._timed("pick", self.core.pick, shape, now=self.now)
            assert decision.verdict is Verdict.SEND
            begun = self._timed("begin", self.core.begin, decision, shape, self.now)
            self._begun.append(begun)
            if len(self._begun) > int(FIRST_TOKEN_S * DECISIONS_PER_S):
                flight = self._begun.popleft()
                self._timed("first_token", flight.first_token, self.now)
                self._started.append(flight)
            if len(self._started) > int(ANSWER_S * DECISIONS_PER_S):
                flight = self._started.popleft()
                self._timed("end", flight.end, Ending.COMPLETE, self.now, **COUNTS)
            self._decided += 1
        return {part: 1e6 * spent / self.count[part] for part, spent in self.spent.items()}

    def _reports(self) -> None:
        """Those of the nodes whose turn it is, with what this router sent, as an agent counts it."""
        due = int(self.now / REPORT_S * self.size)
        for number in range(max(self._reported, due - self.size), due):
            node = number % self.size
            sent = self.core.sent(f"n{node}")[f"r{node}"]
            in_flight = self.core._belief.replicas[f"r{node}"].ledger
            load = ReplicaLoad(
                replica=f"r{node}",
                running=in_flight.sequences + node % 7,
                waiting=len(in_flight.queue) + node % 3,
                kv_use=0.1,
                kv_capacity_tokens=400_000,
                seen=sent,
            )
            report = LoadReport(node=f"n{node}", epoch=2, sequence=number, replicas=(load,))
            self._timed("report", self.core.report, report, self.now)
        self._reported = due

    def _timed(self, part: str, action: Callable[..., Any], *arguments: object, **named: object) -> Any:
        start = time.process_time_ns()
        made = action(*arguments, **named)
        spent = (time.process_time_ns() - start) * 1e-9 - self._idle_s
        self.spent[part] = self.spent.get(part, 0.0) + spent
        self.count[part] = self.count.get(part, 0) + 1
        return made


def _nothing_s() -> float:
    """What looking at the clock costs, with a call."""
    start = time.process_time_ns()
    (lambda: None)()
    return (time.process_time_ns() - start) * 1e-9


def measure(size: int, prompt_bytes: int) -> dict[str, float]:
    asked = shapes(prompt_bytes)
    service = Service(size, asked)
    keep_out_of_the_way()  # as the router does
    many = len(asked)
    keys = [chain("m", shape.prompt) for shape in asked]
    index = service.core._belief.groups["m", False].index
    parts = {
        "hash": best(lambda i: chain("m", asked[i].prompt), many),
        "match": best(lambda i: index.match(keys[i]), many),
    }
    service.round(max(many, int((FIRST_TOKEN_S + ANSWER_S) * DECISIONS_PER_S) + 10))  # until as many end as begin
    rounds = [service.round(many) for _ in range(ROUNDS)]
    parts |= {part: min(one[part] for one in rounds) for part in rounds[0]}
    parts["request"] = min(sum(one[part] for part in ("pick", "begin", "first_token", "end")) for one in rounds)
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
    print(f"microseconds of CPU per call, best of {ROUNDS} rounds; hash and match are parts of pick,")
    print("request is pick, begin, first token and end")
    print("replicas    pick    hash   match   begin     1st     end request  report")
    for size in arguments.sizes:
        p = measure(size, arguments.prompt_bytes)
        print(
            f"{size:>8}  {p['pick']:6.1f}  {p['hash']:6.1f}  {p['match']:6.1f}  "
            f"{p['begin']:6.1f}  {p['first_token']:6.1f}  {p['end']:6.1f}  {p['request']:6.1f}  {p['report']:6.1f}"
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

"""Public traces of real LLM services, shipped packed: when requests came, how long they were, what they shared.

Arrivals and lengths only; texts are made by traffic.py. Sources, licences and traps are in README.md beside this file.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

HERE = Path(__file__).parent
NAMES = ("azure-conv", "mooncake-conv")
BLOCK_TOKENS = 512
"""Tokens that one block id of the Mooncake trace stands for."""
_BUCKET_MS = 3000
"""The Mooncake trace tells times in steps of 3 s: about ten requests would land in the same instant."""


class Arrival(msgspec.Struct, frozen=True):
    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    """Chained prefix blocks of the prompt; requests with the same first ids share that prefix. Empty: not told."""


def load(name: str, *, seed: int = 0) -> list[Arrival]:
    """A whole trace in order of arrival. Mooncake's requests are spread evenly inside their 3 s with the seed."""
    if name not in NAMES:
        raise ValueError(f"no trace {name!r}; there are {', '.join(NAMES)}")
    rng = random.Random(seed)
    with gzip.open(HERE / f"{name}.csv.gz", "rt") as lines:
        arrivals = [parse(text) for text in lines]
    if name.startswith("mooncake"):
        arrivals = [msgspec.structs.replace(a, at_s=a.at_s + rng.random() * _BUCKET_MS / 1000) for a in arrivals]
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def pack(name: str, arrivals: Iterable[Arrival], *, at: Path = HERE) -> Path:
    """Write a trace as it is shipped: `arrival_ms,prompt,output[,blocks]`, blocks as runs such as `0-13 40 42-44`."""
    path = at / f"{name}.csv.gz"
    path.write_bytes(gzip.compress("".join(line(arrival) + "\n" for arrival in arrivals).encode(), 9, mtime=0))
    return path


def line(arrival: Arrival) -> str:
    start = f"{round(arrival.at_s * 1000)},{arrival.prompt_tokens},{arrival.output_tokens}"
    return f"{start},{_runs(arrival.blocks)}" if arrival.blocks else start


def parse(text: str) -> Arrival:
    at_ms, prompt, output, *rest = text.rstrip("\n").split(",")
    blocks: list[int] = []
    for run in rest[0].split() if rest else ():
        first, _, last = run.partition("-")
        blocks += range(int(first), int(last or first) + 1)
    return Arrival(int(at_ms) / 1000, int(prompt), int(output), tuple(blocks))


def _runs(ids: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in ids:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)

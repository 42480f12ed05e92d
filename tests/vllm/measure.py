"""What our own additions to a request cost a real engine: token ids asked for, a seed added.

    .venv/bin/python -m tests.vllm.measure [--rounds 8]

Variants are interleaved within each round; printed are medians over the rounds, and the best of them in brackets:
tokens per second as the clients see them, CPU of the API server and of the engine core per token, bytes and events
per token.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.vllm.servers import VllmServer

TOKENS = 256
SAMPLED = {"temperature": 1.0, "top_p": 0.95}
VARIANTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "greedy + token ids": {"temperature": 0, "return_token_ids": True},
    "sampled": SAMPLED,
    "sampled + seed": SAMPLED | {"seed": 1234},
    "T=1 only": {"temperature": 1.0},
    "T=1 only + seed": {"temperature": 1.0, "seed": 1234},
    "top_k": {"temperature": 1.0, "top_k": 40},
    "top_k + seed": {"temperature": 1.0, "top_k": 40, "seed": 1234},
}
Figures = dict[str, float]


async def stream(client: httpx.AsyncClient, url: str, fields: Mapping[str, Any]) -> tuple[int, int]:
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "ignore_eos": True,
    }
    body["max_tokens"] = TOKENS
    size = events = 0
    async with client.stream("POST", f"{url}/v1/chat/completions", json={**body, **fields}) as answer:
        answer.raise_for_status()
        async for piece in answer.aiter_raw():
            size += len(piece)
            events += piece.count(b"data: {")
    return size, events


async def once(server: VllmServer, fields: Mapping[str, Any], streams: int) -> Figures:
    core = server.core_pid()
    before, at = (cpu_s(server.pid), cpu_s(core)), time.perf_counter()
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=streams)) as client:
        done = await asyncio.gather(*(stream(client, server.url, fields) for _ in range(streams)))
    elapsed, tokens = time.perf_counter() - at, TOKENS * streams
    return {
        "tok/s": tokens / elapsed,
        "API us/tok": (cpu_s(server.pid) - before[0]) / tokens * 1e6,
        "core us/tok": (cpu_s(core) - before[1]) / tokens * 1e6,
        "bytes/tok": sum(size for size, _ in done) / tokens,
        "events/tok": sum(events for _, events in done) / tokens,
    }


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(server: VllmServer, rounds: int) -> None:
    for streams in (1, 16):
        seen: dict[str, list[Figures]] = {name: [] for name in VARIANTS}
        for turn in range(rounds + 1):
            for name, fields in VARIANTS.items():
                figures = await once(server, fields, streams)
                if turn:  # the first round warms up
                    seen[name].append(figures)
        print(f"\n{streams} stream{'s' if streams > 1 else ''}, {TOKENS} tokens each, {rounds} rounds")
        for name, many in seen.items():
            shown = "  ".join(f"{key} {_median_and_best(key, many)}" for key in many[0])
            print(f"{name:22} {shown}", flush=True)


def _median_and_best(key: str, many: list[Figures]) -> str:
    """On a machine that others use, the best of several is nearer to the truth than their median."""
    values = [figures[key] for figures in many]
    best = max(values) if key == "tok/s" else min(values)
    return f"{statistics.median(values):.4g} ({best:.4g})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what token ids and a seed cost vLLM.")
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    server = VllmServer()
    try:
        asyncio.run(measure(server.start().wait_ready(), args.rounds))
    finally:
        server.stop()


if __name__ == "__main__":
    main()

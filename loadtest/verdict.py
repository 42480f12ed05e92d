"""What a replay says of a router: the load it got, the figures of a round, the table. Judges only; replay.py runs.

Objectives are those of routing research: first token within 2 s, then a token at least every 50 ms on average. An
unanswered request counts as infinitely late, so that refusing work never looks like speed.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec

from loadtest.client import Exchange
from loadtest.measures import quantile

SLO_TTFT_S, SLO_TPOT_S = 2.0, 0.05


class Load(msgspec.Struct, frozen=True, kw_only=True):
    trace: str
    plan: str
    speed: float
    """Trace seconds per second; think time between turns is compressed with it."""
    seconds: float
    offset_s: float
    scale: float
    seed: int
    max_output: int = 0
    """Cuts answers; 0: as long as in the trace."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """One contestant's round."""

    requests: int
    unanswered: int
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    goodput: float
    """Share that met TTFT and TPOT objectives."""
    imbalance: float
    """Coefficient of variation of requests inside equal replicas of a model, mean over time."""
    wakes: int
    hits: float
    """Share of prompt tokens that engines had cached."""
    router_cpu_ms: float
    """Per request, all router processes."""
    late_s: float
    """How much later than due the client sent, at p99: above 0.05 the machine was too busy."""
    behind_s: float
    """Time that the engines lost because the machine was too busy, per engine."""
    failures: dict[str, int]
    """What came instead of an answer."""


def summed(
    sent: Sequence[tuple[float, Exchange]],
    stats: Sequence[Mapping[str, float]],
    imbalances: Sequence[float],
    *,
    cpu_s: float,
    cold: int,
) -> Told:
    ttft = [late + exchange.first_event_s if exchange.complete else float("inf") for late, exchange in sent]
    good = sum(met(first, exchange) for first, (_, exchange) in zip(ttft, sent, strict=True))
    queries = sum(one["queries"] for one in stats)
    return Told(
        requests=len(sent),
        unanswered=sum(not exchange.complete for _, exchange in sent),
        ttft_p50_s=quantile(ttft, 0.5),
        ttft_p95_s=quantile(ttft, 0.95),
        ttft_p99_s=quantile(ttft, 0.99),
        goodput=good / max(1, len(sent)),
        imbalance=statistics.fmean(imbalances) if imbalances else 0.0,
        wakes=cold - round(sum(one["asleep"] for one in stats)),
        hits=sum(one["hits"] for one in stats) / queries if queries else 0.0,
        router_cpu_ms=1e3 * cpu_s / max(1, len(sent)),
        late_s=quantile([late for late, _ in sent], 0.99),
        behind_s=statistics.fmean(one["behind_s"] for one in stats),
        failures=dict(Counter(_reason(exchange) for _, exchange in sent if not exchange.complete)),
    )


def _reason(exchange: Exchange) -> str:
    return f"status {exchange.status}, {exchange.events} events, {exchange.error or 'ended without [DONE]'}"


def met(ttft_s: float, exchange: Exchange) -> bool:
    if not exchange.complete or ttft_s > SLO_TTFT_S:
        return False
    tokens = max(1, exchange.events - 2)
    return (exchange.last_event_at - exchange.sent_at - exchange.first_event_s) / tokens <= SLO_TPOT_S


def table(found: Mapping[str, Sequence[Told]], load: Load) -> str:
    """Medians over rounds."""
    head = (
        "router|requests|unanswered|TTFT p50 / p95 / p99 s|goodput|imbalance|wakes|hits|router CPU ms|late / behind s"
    )
    window = f"`{load.trace}` x{load.speed:g} for {load.seconds:g} s from {load.offset_s:g} s"
    lines = [
        f"{window}, plan `{load.plan}`, prompts x{load.scale:g}, seed {load.seed}; medians of the rounds.",
        "",
        "| " + head.replace("|", " | ") + " |",
        "| --- |" + " --: |" * head.count("|"),
    ]
    for name, rounds in found.items():

        def median(get: Callable[[Told], float], rounds: Sequence[Told] = rounds) -> float:
            return statistics.median(get(told) for told in rounds)

        cells = [
            name,
            f"{median(lambda t: t.requests):.0f}",
            f"{median(lambda t: t.unanswered):.0f}",
            " / ".join(f"{median(get):.2f}" for get in _TTFT),
            f"{median(lambda t: t.goodput):.3f}",
            f"{median(lambda t: t.imbalance):.2f}",
            f"{median(lambda t: t.wakes):.0f}",
            f"{median(lambda t: t.hits):.3f}",
            f"{median(lambda t: t.router_cpu_ms):.2f}",
            f"{median(lambda t: t.late_s):.2f} / {median(lambda t: t.behind_s):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


_TTFT: tuple[Callable[[Told], float], ...] = (
    lambda told: told.ttft_p50_s,
    lambda told: told.ttft_p95_s,
    lambda told: told.ttft_p99_s,
)

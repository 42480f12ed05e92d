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
LATE_S, BEHIND_S = 0.1, 0.5
"""A round in which the client sent later, or an engine lost more, is void."""


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
    profile: str = ""
    """Of the engines, instead of the plan's."""


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
    harness_cores: float = 0.0
    """CPU that engines and client took, in cores: near the machine's number of cores nothing here means anything."""
    failures: dict[str, int]
    """What came instead of an answer."""

    @property
    def void(self) -> bool:
        """The machine was too busy for the round to say anything of the router."""
        return self.late_s > LATE_S or self.behind_s > BEHIND_S


def summed(
    sent: Sequence[tuple[float, Exchange]],
    stats: Sequence[Mapping[str, float]],
    imbalances: Sequence[float],
    *,
    cpu_s: float,
    cold: int,
    harness_cores: float = 0.0,
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
        harness_cores=harness_cores,
        failures=dict(Counter(_reason(exchange) for _, exchange in sent if not exchange.complete)),
    )


def _reason(exchange: Exchange) -> str:
    return f"status {exchange.status}, {exchange.events} events, {exchange.error or 'ended without [DONE]'}"


def met(ttft_s: float, exchange: Exchange) -> bool:
    if not exchange.complete or ttft_s > SLO_TTFT_S:
        return False
    tokens = max(1, exchange.events - 2)
    return (exchange.last_event_at - exchange.sent_at - exchange.first_event_s) / tokens <= SLO_TPOT_S


HEAD = (
    "router",
    "requests",
    "unanswered",
    "TTFT p50 s",
    "p95",
    "p99",
    "goodput",
    "imbalance",
    "wakes",
    "hits",
    "router CPU ms",
    "harness cores",
    "late / behind s",
)


def table(found: Mapping[str, Sequence[Told]], load: Load) -> str:
    """Medians over the rounds that are not void, or over all when none is left; [least, most] for p99."""
    window = f"`{load.trace}` x{load.speed:g} for {load.seconds:g} s from {load.offset_s:g} s"
    cut = f", answers cut to {load.max_output} tokens" if load.max_output else ""
    lines = [
        f"{window}, plan `{load.plan}`, prompts x{load.scale:g}{cut}, seed {load.seed}; medians of the rounds.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---|" + "--:|" * (len(HEAD) - 1),
    ]
    lines += [_row(name, rounds) for name, rounds in found.items()]
    return "\n".join(lines)


def _row(name: str, rounds: Sequence[Told]) -> str:
    used = [told for told in rounds if not told.void] or rounds

    def median(get: Callable[[Told], float]) -> float:
        return statistics.median(map(get, used))

    p99 = [told.ttft_p99_s for told in used]
    spread = f" [{min(p99):.2f}, {max(p99):.2f}]" if len(p99) > 1 else ""
    voids = sum(told.void for told in rounds)
    cells = [
        name + (f" ({voids} of {len(rounds)} rounds void)" if voids else ""),
        f"{median(lambda t: t.requests):.0f}",
        f"{median(lambda t: t.unanswered):.0f}",
        f"{median(lambda t: t.ttft_p50_s):.2f}",
        f"{median(lambda t: t.ttft_p95_s):.2f}",
        f"{median(lambda t: t.ttft_p99_s):.2f}{spread}",
        f"{median(lambda t: t.goodput):.3f}",
        f"{median(lambda t: t.imbalance):.2f}",
        f"{median(lambda t: t.wakes):.0f}",
        f"{median(lambda t: t.hits):.3f}",
        f"{median(lambda t: t.router_cpu_ms):.2f}",
        f"{median(lambda t: t.harness_cores):.2f}",
        f"{median(lambda t: t.late_s):.2f} / {median(lambda t: t.behind_s):.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def against_the_best(found: Mapping[str, Sequence[Told]], own: str) -> str:
    """A sentence: our p99 and goodput beside the best peer's in each."""
    peers = {name: rounds for name, rounds in found.items() if name != own}
    if own not in found or not peers:
        return ""

    def p99(name: str) -> float:
        return statistics.median(told.ttft_p99_s for told in found[name])

    def goodput(name: str) -> float:
        return statistics.median(told.goodput for told in found[name])

    fast, good = min(peers, key=p99), max(peers, key=goodput)
    ratio = p99(own) / p99(fast) if p99(fast) else 0.0
    return (
        f"p99 {p99(own):.2f} s against {p99(fast):.2f} s of the best peer in it ({fast}), {ratio:.2f} of it; "
        f"goodput {goodput(own):.3f} against {goodput(good):.3f} of the best in it ({good})."
    )

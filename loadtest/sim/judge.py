"""What a simulation says: the figures of one run, and tables of them with their range over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from statistics import median

import msgspec

from loadtest.sim.outcome import Outcome

SLO_TTFT_MS, SLO_TPOT_MS = 2000.0, 50.0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one run; times in ms, shares in percent."""

    p50: float
    p95: float
    p99: float
    warm_p50: float
    """Of requests for models that were ready from the start: routing alone, without loads."""
    warm_p99: float
    excess_p99: float
    """Of what each request took beyond what no router can beat."""
    slo: float
    tpot: float
    """Share of requests that kept the time between tokens."""
    hit: float
    loads: float
    busy_cv: float
    bias: float
    covered: float
    retried: float
    bound_p50: float
    bound_p99: float


def judge(o: Outcome) -> Figures:
    pairs = list(zip(o.ttft, o.tpot, strict=True))
    return Figures(
        p50=quantile(o.ttft, 0.5),
        p95=quantile(o.ttft, 0.95),
        p99=quantile(o.ttft, 0.99),
        warm_p50=quantile(o.warm_ttft, 0.5),
        warm_p99=quantile(o.warm_ttft, 0.99),
        excess_p99=quantile([t - b for t, b in zip(o.ttft, o.bound, strict=True)], 0.99),
        slo=100.0 * sum(t <= SLO_TTFT_MS and p <= SLO_TPOT_MS for t, p in pairs) / max(1, len(pairs)),
        tpot=100.0 * sum(p <= SLO_TPOT_MS for _, p in pairs) / max(1, len(pairs)),
        hit=100.0 * o.hit,
        loads=float(o.loads),
        busy_cv=o.busy_cv,
        bias=o.accuracy[0],
        covered=100.0 * o.accuracy[2],
        retried=float(o.retried),
        bound_p50=quantile(o.bound, 0.5),
        bound_p99=quantile(o.bound, 0.99),
    )


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else inf


COLUMNS: tuple[tuple[str, Callable[[Figures], float]], ...] = (
    ("p50 ms", lambda f: f.p50),
    ("p95", lambda f: f.p95),
    ("p99", lambda f: f.p99),
    ("warm p99", lambda f: f.warm_p99),
    ("excess p99", lambda f: f.excess_p99),
    ("SLO %", lambda f: f.slo),
    ("TPOT %", lambda f: f.tpot),
    ("hit %", lambda f: f.hit),
    ("loads", lambda f: f.loads),
)
LESS_IS_BETTER = {"p50 ms", "p95", "p99", "warm p99", "excess p99"}
NOISE = 0.03
"""A median that differs by less, or lies within the other's range, is not called a loss."""


def table(rows: Mapping[str, Sequence[Figures]]) -> str:
    """Markdown: medians with the range over seeds."""
    lines = ["| | " + " | ".join(name for name, _ in COLUMNS) + " |", "|---|" + "--:|" * len(COLUMNS)]
    for name, runs in rows.items():
        cells = [_cell([get(run) for run in runs]) for _, get in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    some = next(iter(rows.values()))
    bound = f"{median(f.bound_p50 for f in some):.0f} | | {median(f.bound_p99 for f in some):.0f} | "
    lines.append("| no router can beat | " + bound + "| " * (len(COLUMNS) - 3) + "|")
    return "\n".join(lines)


def losses(rows: Mapping[str, Sequence[Figures]], own: str, but: Sequence[str] = ()) -> str:
    """A sentence on every rule and figure where ours is clearly worse: median worse by more than NOISE, and outside the
    other's range."""
    found = []
    for name, runs in rows.items():
        if name == own or name in but:
            continue
        for column, get in COLUMNS[:7]:
            mine, theirs = median(map(get, rows[own])), [get(run) for run in runs]
            sign = 1.0 if column in LESS_IS_BETTER else -1.0
            worse = sign * (mine - median(theirs)) > NOISE * abs(median(theirs))
            if worse and (mine > max(theirs) if sign > 0 else mine < min(theirs)):
                found.append(f"{column} {_short(mine)} against {_short(median(theirs))} of {name}")
    if found:
        return "Here we lose: " + "; ".join(found) + "."
    return "No rule is clearly better here in any of these figures (by more than 3 % and beyond its own range)."


def _cell(values: Sequence[float]) -> str:
    if max(values) - min(values) < 0.05:
        return _short(median(values))
    return f"{_short(median(values))} [{_short(min(values))}, {_short(max(values))}]"


def _short(value: float) -> str:
    if value == inf:
        return "never"
    return f"{value:.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"

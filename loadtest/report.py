"""The comparison as people read it: Markdown tables and one SVG of bars, from the figures of compare.py.

It computes nothing but ratios. "alone" is the whole time to the first event of a lone stream, the harness included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import msgspec

from loadtest.measures import Figures

BASE = "nginx"
DISTURBED = 0.1
"""Share of the router's core that others may use before its figures are called disturbed."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    machine: str
    command: str
    about: dict[str, str]
    rounds: list[dict[str, Figures]]
    medians: dict[str, Figures]


def markdown(result: Result) -> str:
    found = result.medians
    base = found.get(BASE, {})
    streams = [
        (
            name,
            _with_ratio(f, base, "cpu_us_per_event", "{:.1f}"),
            _slashed(f, ("relay_ms_p50", "relay_ms_p99", "relay_ms_p999"), "{:.2f}"),
            _slashed(f, ("added_first_event_ms_p50", "added_first_event_ms_p99"), "{:.2f}"),
            _number(f, "lone_first_event_ms_p50", "{:.2f}"),
            _ceiling(f),
            _nagle(f),
            f"{f['errors']:.0f}",
        )
        for name, f in found.items()
    ]
    requests = [
        (
            name,
            _with_ratio(f, base, "cpu_us_per_plain", "{:.0f}"),
            _with_ratio(f, base, "plain_per_s", "{:.0f}"),
            _number(f, "idle_mib", "{:.0f}"),
            _with_ratio(f, base, "kib_per_stream_1000", "{:.1f}"),
            result.about.get(name, ""),
        )
        for name, f in found.items()
    ]
    growth = [
        (
            name,
            _slashed(f, ("cpu_us_per_event", "cpu_us_per_event_x2", "cpu_us_per_event_x4"), "{:.1f}"),
            _slashed(f, ("relay_ms_p99", "relay_ms_p99_x2", "relay_ms_p99_x4"), "{:.2f}"),
            _slashed(f, ("events_share", "events_share_x2", "events_share_x4"), "{:.2f}"),
            _slashed(f, ("kib_per_stream_1000", "kib_per_stream_2000", "kib_per_stream_4000"), "{:.1f}"),
        )
        for name, f in found.items()
    ]
    disturbed = [name for name, f in found.items() if f.get("others_share", 0.0) > DISTURBED]
    warning = "**Not on an idle machine**: others used the router's core while these ran: " + ", ".join(disturbed) + "."
    parts = [
        f"Medians of {len(result.rounds)} interleaved rounds; in brackets the ratio to {BASE}. {result.machine}.",
        f"`{result.command}`",
        warning if disturbed else "",
        _table(
            "router|CPU us per event|relay p50 / p99 / p999 ms|added first event p50 / p99 ms|alone, median ms"
            "|ceiling events/s (us each)|waits for ACKs|errors",
            streams,
        ),
        _table("router|CPU us per plain request|plain requests/s|idle MiB|KiB per open stream|what it is", requests),
        _table(
            "router|CPU us per event at 64 / 128 / 256 streams|relay p99 ms at 64 / 128 / 256"
            "|share of events delivered in time|KiB per stream at 1000 / 2000 / 4000",
            growth if any("relay_ms_p99_x4" in f for f in found.values()) else [],
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_PANELS = (
    ("CPU per streamed event, us", "cpu_us_per_event"),
    ("relay latency p99, ms", "relay_ms_p99"),
    ("CPU per plain request, us", "cpu_us_per_plain"),
    ("memory per open stream, KiB", "kib_per_stream_1000"),
)
_ROW, _LABEL, _BARS, _PANEL = 20, 130, 260, 450


def svg(result: Result) -> str:
    """Four panels of bars on a logarithmic scale, the best on top."""
    rows = len(result.medians)
    height = _ROW * rows + 50
    panels = [
        f'<g transform="translate({_PANEL * (n % 2)},{height * (n // 2)})">{_panel(result, title, figure)}</g>'
        for n, (title, figure) in enumerate(_PANELS)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * _PANEL}" height="{2 * height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        + "".join(panels)
        + "</svg>\n"
    )


def _panel(result: Result, title: str, figure: str) -> str:
    values = [(f[figure], name) for name, f in result.medians.items() if name != "direct" and _known(f, figure)]
    values = sorted((value, name) for value, name in values if value > 0)
    lines = [f'<text x="10" y="20" font-weight="bold">{escape(title)}</text>']
    if not values:
        return lines[0]
    low = math.log10(values[0][0]) - 0.3
    span = max(math.log10(values[-1][0]) - low, 0.1)
    for n, (value, name) in enumerate(values):
        y = 34 + n * _ROW
        width = _BARS * (math.log10(value) - low) / span
        colour = "#d9480f" if name.startswith("switchyard") else "#4c6ef5"
        lines.append(f'<text x="{_LABEL - 6}" y="{y + 11}" text-anchor="end">{escape(name)}</text>')
        lines.append(f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_ROW - 6}" fill="{colour}"/>')
        lines.append(f'<text x="{_LABEL + width + 4:.1f}" y="{y + 11}">{value:.3g}</text>')
    return "".join(lines)


def _table(header: str, rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    heads = header.split("|")
    lines: list[Sequence[str]] = [heads, ["---"] + ["--:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _known(figures: Figures, name: str) -> bool:
    return name in figures and not math.isnan(figures[name])


def _number(figures: Figures, name: str, form: str) -> str:
    return form.format(figures[name]) if _known(figures, name) else "n/a"


def _with_ratio(figures: Figures, base: Figures, name: str, form: str) -> str:
    text = _number(figures, name, form)
    if not _known(figures, name) or not base.get(name):
        return text
    return f"{text} ({figures[name] / base[name]:.2f})"


def _slashed(figures: Figures, names: tuple[str, ...], form: str) -> str:
    return " / ".join(_number(figures, name, form) for name in names)


def _ceiling(figures: Figures) -> str:
    """With a mark where the router still had CPU to spare: then the harness or the machine was the limit."""
    mark = ">" if figures.get("ceiling_cpu_share", 1.0) < 0.9 else ""
    rate, cost = ("ceiling_events_per_s", "{:.0f}"), ("ceiling_cpu_us_per_event", "{:.1f}")
    return f"{mark}{_number(figures, *rate)} ({_number(figures, *cost)})"


def _nagle(figures: Figures) -> str:
    """Forty milliseconds, the usual delay of an acknowledgement, would show in these medians."""
    down, up = figures.get("dense_relay_ms_p50", 0.0), figures.get("lone_first_event_ms_p50", 0.0)
    sides = [side for side, value in (("to the client", down), ("to the engine", up)) if value > 15]
    return ", ".join(sides) or "no"

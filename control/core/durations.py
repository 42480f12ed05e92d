"""Durations as people write and read them: `250ms`, `30s`, `5m`, `1h30m`. Everything inside is seconds."""

from __future__ import annotations

import re

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse(text: str) -> float:
    """Seconds. Raise ValueError with a sentence for anything that is not a duration."""
    compact = text.strip().lower().replace(" ", "")
    if re.fullmatch(r"\d+(\.\d+)?", compact):
        return float(compact)
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise ValueError(f"{text!r} is no duration; write it like 30s, 5m or 1h30m")
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)


def show(seconds: float) -> str:
    """Two units at most: what a person compares at a glance."""
    if seconds < 0:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for unit, size, below, below_size in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // below_size:02d}{below}"
    raise AssertionError("unreachable: 60 seconds and more are minutes")

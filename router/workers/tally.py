"""The figures of one router process as plain values, and their sum over processes. Pure; rendering is metrics.py's.

What only grows (requests, tokens, histograms) must not shrink when a worker ends: Prometheus would take the dip for a
new beginning and count everything twice. So the parent keeps what ended workers last told (parent.py), and `total`
adds it. A gauge is true for living workers only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TypeVar

import msgspec

from router.core.checks import Accuracy, joined

K = TypeVar("K")


class Joined(StrEnum):
    """What becomes of one gauge of several workers."""

    SUM = "sum"
    TOTAL = "total"
    """A sum that ended workers stay part of."""
    EACH = "each"
    """One value per worker, told apart by a label."""


class Gauge(msgspec.Struct, frozen=True):
    text: str
    value: float
    joined: Joined = Joined.SUM


class Buckets(msgspec.Struct, frozen=True):
    counts: list[int]
    total: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    requests: dict[tuple[str, str, str], int] = {}
    """By endpoint, model and code."""
    attempts: dict[tuple[str, str], int] = {}
    """By kind and code."""
    tokens: dict[tuple[str, str], int] = {}
    """By model and kind (input, cached, output)."""
    ttft: dict[str, Buckets] = {}
    duration: dict[str, Buckets] = {}
    queue_wait: dict[str, Buckets] = {}
    """By model; of requests that waited under pressure."""
    refused: dict[tuple[str, str], int] = {}
    """Under pressure, by base model and reason."""
    waiting: dict[str, int] = {}
    """Under pressure, by base model."""
    predictions: dict[str, int] = {}
    """First tokens that were predicted and came, by base model."""
    accuracy: dict[str, Accuracy] = {}
    """Of these predictions."""
    in_flight: dict[str, int] = {}
    gauges: dict[str, Gauge] = {}


def lasting(figures: Figures) -> Figures:
    """What stays true of a worker after its end."""
    gauges = {name: gauge for name, gauge in figures.gauges.items() if gauge.joined is Joined.TOTAL}
    return msgspec.structs.replace(figures, in_flight={}, waiting={}, accuracy={}, gauges=gauges)


def total(parts: Iterable[Figures]) -> Figures:
    """The sum. Gauges that are told per worker are left out: `each` has them."""
    parts = list(parts)
    return Figures(
        requests=_sum(p.requests for p in parts),
        attempts=_sum(p.attempts for p in parts),
        tokens=_sum(p.tokens for p in parts),
        ttft=_sum_buckets(p.ttft for p in parts),
        duration=_sum_buckets(p.duration for p in parts),
        queue_wait=_sum_buckets(p.queue_wait for p in parts),
        refused=_sum(p.refused for p in parts),
        waiting=_sum(p.waiting for p in parts),
        predictions=_sum(p.predictions for p in parts),
        accuracy=joined(p.accuracy for p in parts),
        in_flight=_sum(p.in_flight for p in parts),
        gauges=_sum_gauges(p.gauges for p in parts),
    )


def each(workers: Mapping[str, Figures]) -> dict[str, tuple[str, dict[str, float]]]:
    """Gauges that are told per worker: name to text and values by worker."""
    found: dict[str, tuple[str, dict[str, float]]] = {}
    for worker, figures in workers.items():
        for name, gauge in figures.gauges.items():
            if gauge.joined is Joined.EACH:
                found.setdefault(name, (gauge.text, {}))[1][worker] = gauge.value
    return found


def _sum(maps: Iterable[Mapping[K, int]]) -> dict[K, int]:
    found: dict[K, int] = {}
    for one in maps:
        for key, value in one.items():
            found[key] = found.get(key, 0) + value
    return found


def _sum_buckets(maps: Iterable[Mapping[str, Buckets]]) -> dict[str, Buckets]:
    found: dict[str, Buckets] = {}
    for one in maps:
        for model, b in one.items():
            a = found.get(model)
            counts = [x + y for x, y in zip(a.counts, b.counts, strict=True)] if a else b.counts
            found[model] = Buckets(counts, (a.total if a else 0.0) + b.total)
    return found


def _sum_gauges(maps: Iterable[Mapping[str, Gauge]]) -> dict[str, Gauge]:
    found: dict[str, Gauge] = {}
    for one in maps:
        for name, gauge in one.items():
            if gauge.joined is not Joined.EACH:
                before = found[name].value if name in found else 0.0
                found[name] = msgspec.structs.replace(gauge, value=before + gauge.value)
    return found

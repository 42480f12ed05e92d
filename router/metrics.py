"""What /metrics shows. The walk counts in plain integers; this collector turns them into Prometheus' text when asked.

Labels have few values: codes from the error table, models and nodes from the registry. Names end in their unit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from router.call import Call

LATENCY_BUCKETS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""The buckets of OpenTelemetry's GenAI conventions."""


class Histogram:
    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self.total = 0.0

    def add(self, value_s: float) -> None:
        self.counts[bisect_left(LATENCY_BUCKETS_S, value_s)] += 1
        self.total += value_s

    def buckets(self) -> list[tuple[str, float]]:
        bounds = [*(str(b) for b in LATENCY_BUCKETS_S), "+Inf"]
        return list(zip(bounds, (float(n) for n in accumulate(self.counts)), strict=True))


class Instruments:
    """Plain counts, added to by the walk."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        """By endpoint, model and code."""
        self.attempts: Counter[tuple[str, str]] = Counter()
        """By kind and code."""
        self.tokens: Counter[tuple[str, str]] = Counter()
        """By model and kind (input, cached, output)."""
        self.ttft: dict[str, Histogram] = {}
        self.duration: dict[str, Histogram] = {}
        self.open_calls = 0

    def count(self, call: Call) -> None:
        model = call.model
        self.requests[call.endpoint, model, call.code] += 1
        for attempt in call.attempts:
            self.attempts[attempt.kind, attempt.code] += 1
        if call.usage is not None:
            self.tokens[model, "input"] += call.usage.prompt_tokens
            self.tokens[model, "cached"] += max(0, call.usage.cached_tokens)
            self.tokens[model, "output"] += call.usage.output_tokens
        if call.first_token:
            self.ttft.setdefault(model, Histogram()).add(call.first_token - call.arrived)
        self.duration.setdefault(model, Histogram()).add(call.ended - call.arrived)


class RouterCollector(Collector):
    def __init__(
        self,
        instruments: Instruments,
        gauges: Callable[[], dict[str, tuple[str, float]]],
        in_flight: Callable[[], dict[str, int]],
    ) -> None:
        self._instruments = instruments
        self._gauges = gauges
        self._in_flight = in_flight

    def collect(self) -> Iterable[Metric]:
        i = self._instruments
        requests = CounterMetricFamily(
            "switchyard_requests", "Requests by how they ended", labels=["endpoint", "model", "code"]
        )
        for labels, n in i.requests.items():
            requests.add_metric(labels, n)
        attempts = CounterMetricFamily(
            "switchyard_attempts", "Tries on replicas by how they ended", labels=["kind", "code"]
        )
        for pair, n in i.attempts.items():
            attempts.add_metric(pair, n)
        tokens = CounterMetricFamily("switchyard_tokens", "Tokens by model and kind", labels=["model", "kind"])
        for pair, n in i.tokens.items():
            tokens.add_metric(pair, n)
        in_flight = GaugeMetricFamily("switchyard_in_flight", "Requests in flight by replica", labels=["replica"])
        for replica, n in self._in_flight().items():
            in_flight.add_metric([replica], n)
        yield from (requests, attempts, tokens, in_flight)
        yield _histogram("switchyard_time_to_first_token_seconds", "Arrival to first event", i.ttft)
        yield _histogram("switchyard_request_duration_seconds", "Arrival to last byte", i.duration)
        for name, (text, value) in self._gauges().items():
            yield GaugeMetricFamily(name, text, value=value)


def _histogram(name: str, text: str, by_model: dict[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=["model"])
    for model, histogram in by_model.items():
        family.add_metric([model], histogram.buckets(), histogram.total)
    return family


def render(collector: RouterCollector) -> bytes:
    """Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)

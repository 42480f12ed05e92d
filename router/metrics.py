"""What /metrics shows. The walk counts in plain integers; this collector turns them into Prometheus' text when asked.

Labels have few values: codes from the error table, models and nodes from the registry. Names end in their unit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from router.call import Call
from router.core.checks import Accuracy
from router.workers.channel import Told
from router.workers.tally import Buckets, Figures, Gauge, Joined, each, total

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

    def figures(self) -> Buckets:
        return Buckets(list(self.counts), self.total)


class Instruments:
    """Plain counts, added to by the walk."""

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        """By endpoint, model and code."""
        self.attempts: defaultdict[tuple[str, str], int] = defaultdict(int)
        """By kind and code."""
        self.tokens: defaultdict[tuple[str, str], int] = defaultdict(int)
        """By model and kind (input, cached, output)."""
        self.ttft: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.duration: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.queue_wait: defaultdict[str, Histogram] = defaultdict(Histogram)
        """Of requests that waited under pressure."""
        self.refused: defaultdict[tuple[str, str], int] = defaultdict(int)
        """Under pressure, by base model and reason (admission.Why)."""
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
            self.ttft[model].add(call.first_token - call.arrived)
        self.duration[model].add(call.ended - call.arrived)
        if call.queue_wait_s:
            self.queue_wait[model].add(call.queue_wait_s)

    def figures(
        self,
        *,
        gauges: Mapping[str, Gauge],
        in_flight: Mapping[str, int],
        waiting: Mapping[str, int],
        accuracy: Mapping[str, Accuracy],
    ) -> Figures:
        return Figures(
            requests=dict(self.requests),
            attempts=dict(self.attempts),
            tokens=dict(self.tokens),
            ttft={model: histogram.figures() for model, histogram in self.ttft.items()},
            duration={model: histogram.figures() for model, histogram in self.duration.items()},
            queue_wait={model: histogram.figures() for model, histogram in self.queue_wait.items()},
            refused=dict(self.refused),
            waiting=dict(waiting),
            predictions={model: of.observations for model, of in accuracy.items()},
            accuracy={model: of for model, of in accuracy.items() if of.observations},
            in_flight=dict(in_flight),
            gauges=dict(gauges),
        )


class FiguresCollector(Collector):
    """The figures of one process, or of all workers of a parent."""

    def __init__(self, figures: Figures, told: Told | None = None) -> None:
        self._told = told
        self._all = total([*told.workers.values(), told.ended] if told else [figures])
        self._each = each(told.workers if told else {"": figures})

    def collect(self) -> Iterable[Metric]:
        yield from self._counts()
        yield _histogram("switchyard_time_to_first_token_seconds", "Arrival to first event", self._all.ttft)
        yield _histogram("switchyard_request_duration_seconds", "Arrival to last byte", self._all.duration)
        yield from self._under_pressure()
        yield from self._predictions()
        for name, gauge in self._all.gauges.items():
            family = CounterMetricFamily if gauge.joined is Joined.TOTAL else GaugeMetricFamily
            yield family(name, gauge.text, value=gauge.value)
        for name, (text, values) in self._each.items():
            yield _by_worker(name, text, values)
        if self._told is not None:
            yield from _of_workers(self._told)

    def _counts(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "switchyard_requests", "Requests by how they ended", labels=["endpoint", "model", "code"]
        )
        for labels, n in self._all.requests.items():
            requests.add_metric(labels, n)
        attempts = CounterMetricFamily(
            "switchyard_attempts", "Tries on replicas by how they ended", labels=["kind", "code"]
        )
        for pair, n in self._all.attempts.items():
            attempts.add_metric(pair, n)
        tokens = CounterMetricFamily("switchyard_tokens", "Tokens by model and kind", labels=["model", "kind"])
        for pair, n in self._all.tokens.items():
            tokens.add_metric(pair, n)
        in_flight = GaugeMetricFamily("switchyard_in_flight", "Requests in flight by replica", labels=["replica"])
        for replica, n in self._all.in_flight.items():
            in_flight.add_metric([replica], n)
        return requests, attempts, tokens, in_flight

    def _under_pressure(self) -> Iterable[Metric]:
        text = "Waited in the router under pressure; only of requests that did"
        yield _histogram("switchyard_queue_wait_seconds", text, self._all.queue_wait)
        waiting = GaugeMetricFamily(
            "switchyard_queued_requests", "Requests waiting under pressure, by base model", labels=["model"]
        )
        for model, n in self._all.waiting.items():
            waiting.add_metric([model], n)
        yield waiting
        refused = CounterMetricFamily(
            "switchyard_refused_under_pressure", "Requests refused, by base model", labels=["model", "reason"]
        )
        for pair, n in self._all.refused.items():
            refused.add_metric(pair, n)
        yield refused

    def _predictions(self) -> Iterable[Metric]:
        """Were they true? The last about 50 requests of a model count."""
        known = self._all.accuracy
        observed = CounterMetricFamily(
            "switchyard_ttft_predictions", "First tokens that were predicted and came", labels=["model"]
        )
        for model, n in self._all.predictions.items():
            observed.add_metric([model], n)
        yield observed
        for name, text, values in (
            (
                "bias_ratio",
                "Observed over predicted, geometric mean: 1 is right",
                {m: a.bias for m, a in known.items()},
            ),
            ("spread_ratio", "Mean |log(observed / predicted)|: 0.1 is 10 %", {m: a.spread for m, a in known.items()}),
            (
                "p90_coverage_ratio",
                "Under the predicted p90: 0.9 is right",
                {m: a.p90_coverage for m, a in known.items()},
            ),
        ):
            family = GaugeMetricFamily(f"switchyard_ttft_prediction_{name}", text, labels=["model"])
            for model, value in values.items():
                family.add_metric([model], value)
            yield family


def _by_worker(name: str, text: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    if "" in values:  # the only process there is
        return GaugeMetricFamily(name, text, value=values[""])
    family = GaugeMetricFamily(name, text, labels=["worker"])
    for worker, value in values.items():
        family.add_metric([worker], value)
    return family


def _of_workers(told: Told) -> Iterable[Metric]:
    yield GaugeMetricFamily("switchyard_workers", "Worker processes that answered", value=len(told.workers))
    yield GaugeMetricFamily(
        "switchyard_workers_silent", "Workers that did not answer: counted as last told", value=told.silent
    )
    yield CounterMetricFamily("switchyard_worker_restarts", "Workers that ended unasked", value=told.restarts)


def _histogram(name: str, text: str, by_model: Mapping[str, Buckets]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=["model"])
    bounds = [*(str(b) for b in LATENCY_BUCKETS_S), "+Inf"]
    for model, buckets in by_model.items():
        upto = (float(n) for n in accumulate(buckets.counts))
        family.add_metric([model], list(zip(bounds, upto, strict=True)), buckets.total)
    return family


def render(figures: Figures, told: Told | None = None) -> bytes:
    """Prometheus' text format. With `told` the figures of all workers, else those of this process."""
    registry = CollectorRegistry()
    registry.register(FiguresCollector(figures, told))
    return generate_latest(registry)

"""The figures that vLLM 0.32 shows under /metrics, with its names, labels and bucket bounds."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from node_agent.engines.simulated.batching import Counters
from node_agent.engines.simulated.profiles import Profile

_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_E2E = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


class Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def lines(self, name: str, labels: str) -> list[str]:
        totals = list(accumulate(self.counts))
        bounds = [*(f"{float(b)}" for b in self.bounds), "+Inf"]
        return [
            f"# TYPE {name} histogram",
            *(f'{name}_bucket{{{labels},le="{b}"}} {float(n)}' for b, n in zip(bounds, totals, strict=True)),
            f"{name}_count{{{labels}}} {float(totals[-1])}",
            f"{name}_sum{{{labels}}} {self.sum}",
        ]


class Metrics:
    """Counted by the replica; `render` makes the page."""

    def __init__(self, created_unix_s: float) -> None:
        self.created_unix_s = created_unix_s
        self.ttft = Histogram(_TTFT)
        self.itl = Histogram(_ITL)
        self.tpot = Histogram(_ITL)
        self.queue = Histogram(_E2E)
        self.e2e = Histogram(_E2E)
        self.inference = Histogram(_E2E)
        self.prefill = Histogram(_E2E)
        self.decode = Histogram(_E2E)
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        self.rejected = 0
        self.http: dict[tuple[str, str, str], int] = {}
        """Answers by path, method and class of status."""

    def render(
        self, *, model: str, counters: Counters, profile: Profile, sleep_level: int | None, adapters: dict[str, str]
    ) -> bytes:
        labels = f'engine="0",model_name="{model}"'
        page = _Page(labels, self.created_unix_s)
        c = counters
        page.gauge("vllm:num_requests_running", c.running)
        page.gauge("vllm:num_requests_waiting", c.waiting)
        page.gauges("vllm:num_requests_waiting_by_reason", "reason", {"capacity": c.waiting, "deferred": 0})
        page.gauge("vllm:kv_cache_usage_perc", c.kv_use)
        page.sleep(sleep_level)
        page.config(profile)
        page.counter("vllm:prefix_cache_queries", c.prefix_queries_tokens)
        page.counter("vllm:prefix_cache_hits", c.prefix_hits_tokens)
        page.counter("vllm:external_prefix_cache_queries", 0)
        page.counter("vllm:external_prefix_cache_hits", 0)
        page.counter("vllm:num_preemptions", c.preemptions)
        page.counter("vllm:prompt_tokens", c.prompt_tokens)
        page.counters(
            "vllm:prompt_tokens_by_source",
            "source",
            {
                "local_compute": c.prompt_tokens - c.prefix_hits_tokens,
                "local_cache_hit": c.prefix_hits_tokens,
                "external_kv_transfer": 0,
            },
        )
        page.counter("vllm:prompt_tokens_cached", c.prefix_hits_tokens)
        page.counter("vllm:generation_tokens", c.generation_tokens)
        page.counters("vllm:request_success", "finished_reason", self.finished)
        page.rejections(self.rejected)
        page.adapters(adapters)
        for name, histogram in (
            ("vllm:time_to_first_token_seconds", self.ttft),
            ("vllm:inter_token_latency_seconds", self.itl),
            ("vllm:request_time_per_output_token_seconds", self.tpot),
            ("vllm:e2e_request_latency_seconds", self.e2e),
            ("vllm:request_queue_time_seconds", self.queue),
            ("vllm:request_inference_time_seconds", self.inference),
            ("vllm:request_prefill_time_seconds", self.prefill),
            ("vllm:request_decode_time_seconds", self.decode),
        ):
            page.lines += histogram.lines(name, labels)
        page.http(self.http)
        return ("\n".join(page.lines) + "\n").encode()


class _Page:
    def __init__(self, labels: str, created: float) -> None:
        self.labels = labels
        self.created = created
        self.lines: list[str] = []

    def gauge(self, name: str, value: float) -> None:
        self.lines += [f"# TYPE {name} gauge", f"{name}{{{self.labels}}} {float(value)}"]

    def gauges(self, name: str, label: str, values: dict[str, int]) -> None:
        self.lines.append(f"# TYPE {name} gauge")
        self.lines += [f'{name}{{{self.labels},{label}="{k}"}} {float(v)}' for k, v in values.items()]

    def counter(self, name: str, value: float) -> None:
        self.lines += [
            f"# TYPE {name}_total counter",
            f"{name}_total{{{self.labels}}} {float(value)}",
            f"# TYPE {name}_created gauge",
            f"{name}_created{{{self.labels}}} {self.created}",
        ]

    def counters(self, name: str, label: str, values: dict[str, int]) -> None:
        self.lines.append(f"# TYPE {name}_total counter")
        self.lines += [f'{name}_total{{{self.labels},{label}="{k}"}} {float(v)}' for k, v in values.items()]

    def sleep(self, level: int | None) -> None:
        states = {"awake": level is None, "weights_offloaded": level == 1, "discard_all": level == 2}
        self.gauges("vllm:engine_sleep_state", "sleep_state", {k: int(v) for k, v in states.items()})

    def config(self, profile: Profile) -> None:
        blocks = profile.kv_capacity_tokens // profile.block_tokens
        values = {
            "block_size": profile.block_tokens,
            "enable_prefix_caching": "True",
            "kv_cache_max_concurrency": round(profile.kv_capacity_tokens / profile.max_model_len, 2),
            "kv_cache_size_tokens": blocks * profile.block_tokens,
            "num_gpu_blocks": blocks,
        }
        text = ",".join(f'{k}="{v}"' for k, v in values.items())
        self.lines += ["# TYPE vllm:cache_config_info gauge", f'vllm:cache_config_info{{{text},engine="0"}} 1.0']

    def rejections(self, count: int) -> None:
        name = "vllm:admission_rejections_total"
        model = self.labels.split(",", 1)[1]
        self.lines += [f"# TYPE {name} counter", f'{name}{{{model},reason="max_num_queued_reqs"}} {float(count)}']
        self.lines.append(f'{name}{{{model},reason="max_num_queued_tokens"}} 0.0')

    def adapters(self, values: dict[str, str]) -> None:
        if values:
            text = ",".join(f'{k}="{v}"' for k, v in values.items())
            self.lines += [
                "# TYPE vllm:lora_requests_info gauge",
                f"vllm:lora_requests_info{{{text}}} {self.created}",
            ]

    def http(self, counts: dict[tuple[str, str, str], int]) -> None:
        self.lines.append("# TYPE http_requests_total counter")
        for (handler, method, status), n in counts.items():
            labels = f'handler="{handler}",method="{method}",status="{status}"'
            self.lines.append(f"http_requests_total{{{labels}}} {float(n)}")
        self.lines += ["# TYPE process_start_time_seconds gauge", f"process_start_time_seconds {self.created}"]

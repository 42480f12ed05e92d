"""The figures of several workers as one."""

from __future__ import annotations

from router.core.checks import Accuracy
from router.metrics import LATENCY_BUCKETS_S, render
from router.workers.channel import Told
from router.workers.tally import Buckets, Figures, Gauge, Joined, each, lasting, total


def figures(n: int) -> Figures:
    counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
    counts[2] = n
    return Figures(
        requests={("chat", "tiny", "ok"): n},
        attempts={("first", "ok"): n},
        tokens={("tiny", "output"): 10 * n},
        ttft={"tiny": Buckets(counts, 0.03 * n)},
        duration={"tiny": Buckets(counts, 0.03 * n)},
        queue_wait={"tiny": Buckets(counts, 0.03 * n)},
        refused={("tiny", "late"): n},
        waiting={"tiny": n},
        predictions={"tiny": n},
        accuracy={"tiny": Accuracy(observations=n, bias=1.0, spread=0.25, p90_coverage=0.9)},
        in_flight={"node-1/0": n},
        gauges={
            "open": Gauge("Open", n),
            "written": Gauge("Written", n, Joined.TOTAL),
            "age": Gauge("Age", n, Joined.EACH),
        },
    )


def test_counts_histograms_and_gauges_of_workers_add_up() -> None:
    sum_ = total([figures(1), figures(2)])
    assert {("chat", "tiny", "ok"): 3} == sum_.requests
    assert 3 == sum_.ttft["tiny"].counts[2]
    assert {"node-1/0": 3} == sum_.in_flight
    assert {"open": 3.0, "written": 3.0} == {name: gauge.value for name, gauge in sum_.gauges.items()}


def test_a_gauge_that_describes_one_process_keeps_a_value_per_worker() -> None:
    assert {"age": ("Age", {"w0": 1, "w1": 2})} == each({"w0": figures(1), "w1": figures(2)})


def test_what_a_worker_counted_outlives_it_and_what_it_held_does_not() -> None:
    left = lasting(figures(4))
    assert ({("chat", "tiny", "ok"): 4}, {}, ["written"]) == (left.requests, left.in_flight, list(left.gauges))
    assert ({("tiny", "late"): 4}, {"tiny": 4}) == (left.refused, left.predictions)
    assert ({}, {}) == (left.waiting, left.accuracy)


def test_the_page_of_several_workers_shows_sums_ended_workers_included_and_who_was_silent() -> None:
    told = Told(number=1, workers={"w0": figures(1), "w1": figures(2)}, ended=lasting(figures(4)), silent=1, restarts=2)
    lines = render(Figures(), told).decode().splitlines()
    for line in (
        'switchyard_requests_total{code="ok",endpoint="chat",model="tiny"} 7.0',
        'switchyard_time_to_first_token_seconds_count{model="tiny"} 7.0',
        'switchyard_in_flight{replica="node-1/0"} 3.0',
        'switchyard_queue_wait_seconds_count{model="tiny"} 7.0',
        'switchyard_refused_under_pressure_total{model="tiny",reason="late"} 7.0',
        'switchyard_queued_requests{model="tiny"} 3.0',
        'switchyard_ttft_predictions_total{model="tiny"} 7.0',
        'switchyard_ttft_prediction_bias_ratio{model="tiny"} 1.0',
        'switchyard_ttft_prediction_spread_ratio{model="tiny"} 0.25',
        'switchyard_ttft_prediction_p90_coverage_ratio{model="tiny"} 0.9',
        "open 3.0",
        "written_total 7.0",
        'age{worker="w1"} 2.0',
        "switchyard_workers 2.0",
        "switchyard_workers_silent 1.0",
        "switchyard_worker_restarts_total 2.0",
    ):
        assert line in lines


def test_the_page_of_a_lone_process_has_no_worker_label() -> None:
    lines = render(figures(1)).decode().splitlines()
    assert "age 1.0" in lines
    assert not [line for line in lines if line.startswith("switchyard_workers")]

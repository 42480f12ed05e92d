from __future__ import annotations

import asyncio
import tempfile

import msgspec

from loadtest.bench_first import measure
from loadtest.bench_plain import ANSWER, Bench
from loadtest.bench_ratios import ACCEPTED, dearer


def test_only_what_became_dearer_by_more_than_the_slack_is_named() -> None:
    accepted = {"same": 1.0, "noisy": 1.0, "dear": 1.0}
    assert ["dear"] == dearer({"same": 1.0, "noisy": 1.2, "dear": 1.4, "new": 9.0}, accepted, slack=0.3)


def test_accepted_figures_are_kept_for_a_plain_request_and_for_decisions_of_each_size() -> None:
    accepted = msgspec.json.decode(ACCEPTED.read_bytes(), type=dict[str, float])
    assert {"plain request", "pick of 16", "pick of 1000", "pick of 10000"} <= accepted.keys()


def test_the_router_without_sockets_answers_what_its_engine_said() -> None:
    async def answers() -> list[bytes]:
        with tempfile.TemporaryDirectory() as directory:
            bench = Bench(directory, replicas=2)
            try:
                return [await bench.ask() for _ in range(3)]
            finally:
                bench.close()

    for answer in asyncio.run(answers()):
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(ANSWER)


def test_a_first_event_is_timed_on_both_of_its_ways_through_the_router() -> None:
    turns: list[str] = []
    waits = asyncio.run(measure(requests=2, before=lambda: turns.append("before")))
    assert 4 == len(turns)
    assert all(wait_us > 0.0 for wait_us in waits)

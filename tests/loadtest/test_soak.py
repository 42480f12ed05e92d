"""The soak's own judgement, and a short soak of the real thing."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from loadtest.rig import rig
from loadtest.soak import Leave, Mix, Outcome, fifths, gauge, grown, journalled, not_once, soak, story, wishes
from wire.usage import UsageRecord, encode_line

PAGE = """# TYPE switchyard_in_flight gauge
switchyard_in_flight{replica="a"} 2.0
switchyard_in_flight{replica="b"} 1.0
switchyard_in_flight_more 9.0
switchyard_open_requests 4.0
"""


def test_a_gauge_is_summed_over_its_labels_and_only_its_own() -> None:
    assert [3.0, 4.0, 0.0] == [
        gauge(PAGE, name) for name in ("switchyard_in_flight", "switchyard_open_requests", "switchyard_none")
    ]


def test_a_third_of_the_clients_leave_and_at_every_kind_of_moment() -> None:
    leaves = Counter(wish.leave for wish in wishes(Mix(requests=3000), "m"))
    assert set(Leave) == set(leaves)
    assert 900 < 3000 - leaves[Leave.NEVER] < 1100


def test_the_same_seed_asks_the_same() -> None:
    first, again, other = (list(islice(wishes(Mix(seed=seed), "m"), 20)) for seed in (1, 1, 2))
    assert first == again
    assert [wish.body for wish in first] != [wish.body for wish in other]


def test_memory_that_settles_is_flat_and_memory_that_climbs_is_not() -> None:
    settled = [40 * 2**20 + min(n, 20) * 2**20 for n in range(200)]
    climbing = [40 * 2**20 + n * 2**19 for n in range(200)]
    assert [] == grown(settled)
    assert "memory grew" in grown(climbing)[0]


def _record(request_id: str) -> bytes:
    return encode_line(
        UsageRecord(
            event_id=request_id,
            request_id=request_id,
            region="local",
            router="r",
            tenant="t",
            key="k",
            model="m",
            endpoint="chat",
            stream=True,
            arrived_unix_ns=0,
            duration_s=0.0,
            ttft_s=None,
            held_s=0.0,
            code="ok",
            status=200,
            prompt_tokens=0,
            cached_tokens=0,
            output_tokens=0,
            token_source="engine",
            attempts=[],
        )
    )


def test_missing_and_double_lines_of_the_journal_are_found(tmp_path: Path) -> None:
    (tmp_path / "usage-000001.jsonl").write_bytes(_record("soak-1-0") + _record("soak-1-2") + b'{"event_id":"cut')
    (tmp_path / "usage-000002.jsonl").write_bytes(_record("soak-1-2"))
    found = journalled(tmp_path)
    assert {"soak-1-0": 1, "soak-1-2": 2} == found
    missing, twice = not_once(found, Mix(), 3)
    assert "1 of 3 requests are not in the journal, such as soak-1-1" == missing
    assert "such as soak-1-2" in twice


def test_problems_are_told_and_their_absence_too() -> None:
    assert "one journal line per request" in story(Outcome(sent=3))
    assert "PROBLEM: two left" in story(Outcome(sent=3, problems=["two left"]))


def test_a_run_that_gets_slower_shows_it_fifth_by_fifth() -> None:
    assert ["1 / 1", "2 / 2", "3 / 3", "4 / 4", "9 / 9"] == fifths([0.001, 0.002, 0.003, 0.004, 0.009])
    assert ["1 / 1", "2 / 2"] == fifths([0.001, 0.002])


async def test_after_a_short_soak_nothing_is_left_counted(tmp_path: Path) -> None:
    options = ("--profile", "paced", "--time-scale", "0.25")
    async with rig(tmp_path, replicas=2, engine_options=options) as target:
        outcome = await soak(target, Mix(requests=300, concurrency=24))
    assert [] == outcome.problems
    assert 300 == outcome.sent
    assert len(outcome.left) >= 4


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_after_ten_thousand_requests_nothing_is_left_counted_and_memory_is_flat(tmp_path: Path) -> None:
    options = ("--profile", "paced", "--time-scale", "0.5")
    async with rig(tmp_path, engine_options=options) as target:
        outcome = await soak(target, Mix(requests=10_000))
    assert [] == outcome.problems
    assert 3000 < sum(outcome.left.values()) < 3700

"""Locust's figures become one table, and a short run against an engine ends well."""

from __future__ import annotations

import asyncio
import math
import sys
from pathlib import Path

import pytest

from loadtest.locust_run import Entry, main, quantile, rows, table
from loadtest.processes import Process

ENTRIES = [
    Entry("chat stream", "request", 10, 1, {"900": 8, "1500": 2}, 4000),
    Entry("chat stream", "TTFT", 9, 0, {"50": 8, "400": 1}, 0),
    Entry("chat stream", "ITL", 900, 0, {"20": 890, "80": 10}, 0),
    Entry("chat stream", "tokens", 9, 0, {"49": 9}, 909),
    Entry("completion", "request", 4, 0, {"700": 4}, 900),
]


def test_metrics_stand_in_the_row_of_their_request() -> None:
    chat, completion = rows(ENTRIES)
    assert ("chat stream", 10, 1, 909) == (chat.kind, chat.requests, chat.failures, chat.tokens)
    assert (50.0, 400.0, 400.0) == chat.ttft_ms
    assert (20.0, 20.0, 80.0) == chat.itl_ms
    assert ((), 0) == (completion.ttft_ms, completion.tokens)


def test_the_table_is_for_people() -> None:
    lines = table(rows(ENTRIES), seconds=10).splitlines()
    assert "chat stream  10        1       1.0    900 / 1500 / 1500  50 / 400 / 400  20 / 20 / 80  91" == lines[2]


def test_a_quantile_of_counts_is_the_value_that_enough_do_not_exceed() -> None:
    counts = {"100": 1, "20": 98, "3": 1}
    assert [20.0, 20.0, 100.0] == [quantile(counts, q) for q in (0.5, 0.99, 1.0)]
    assert math.isnan(quantile({}, 0.5))


def test_nobody_there_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(["--host", "http://127.0.0.1:9", "--seconds", "1"])
    assert "loadtest:" in capsys.readouterr().err


async def test_a_short_run_prints_every_kind_and_exits_with_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "loadtest.baselines.engine", "--ports", "0"]
    with Process(command, name="engine", directory=tmp_path) as engine:
        port = engine.await_line("ready ")
        arguments = ["--host", f"http://127.0.0.1:{port}", "--users", "4", "--seconds", "4"]
        code = await asyncio.to_thread(main, arguments)
    printed = capsys.readouterr().out
    assert 0 == code
    assert "chat stream" in printed
    assert "TTFT ms" in printed

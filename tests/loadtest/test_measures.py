"""What is read from clocks, processes and tools."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.measures import quantile
from loadtest.plain import NoFigures, parse_wrk
from loadtest.processes import CannotStart, Process, cpu_s, descendants, memory_bytes

WRK = """Running 2s test @ http://127.0.0.1:1/v1/chat/completions
  1 threads and 32 connections
  84000 requests in 2.05s, 30.12MB read
  Socket errors: connect 0, read 2, write 0, timeout 1
  Non-2xx or 3xx responses: 4
Requests/sec:  40975.60
"""


def test_wrk_is_understood_with_all_its_failures() -> None:
    found = parse_wrk(WRK)
    assert (84000, 7, 2.05) == (found.requests, found.failures, found.seconds)


def test_other_text_is_not_taken_for_figures() -> None:
    with pytest.raises(NoFigures, match="something else"):
        parse_wrk("unable to connect")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.floats(0.001, 1.0))
def test_a_quantile_is_a_value_that_enough_do_not_exceed(values: list[float], q: float) -> None:
    found = quantile(values, q)
    assert found in values
    assert sum(value <= found for value in values) >= q * len(values) - 1e-6 * len(values)


def test_a_quantile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(quantile([], 0.5))


def test_quantiles_of_a_hundred_values_are_the_values_themselves() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [1.0, 50.0, 99.0, 100.0] == [quantile(values, q) for q in (0.01, 0.5, 0.99, 1.0)]


def test_cpu_of_a_process_is_the_kernels(tmp_path: Path) -> None:
    own = time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
    assert own <= cpu_s(os.getpid()) <= time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
    assert memory_bytes(os.getpid()) > 1_000_000


def test_a_process_that_is_gone_has_used_and_holds_nothing_more(tmp_path: Path) -> None:
    with Process([sys.executable, "-c", "pass"], name="brief", directory=tmp_path) as process:
        pid = process.pid
    assert (0.0, 0) == (cpu_s(pid), memory_bytes(pid))


def test_a_tree_is_measured_whole_and_ends_with_its_root(tmp_path: Path) -> None:
    child = "import time; print('deep', flush=True); time.sleep(600)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with Process([sys.executable, "-c", program], name="tree", directory=tmp_path) as process:
        process.await_line("deep")
        below = descendants(process.pid)
        usage = process.usage()
    assert 1 == len(below)
    assert usage.cpu_s > 0
    assert [0] == [memory_bytes(pid) for pid in below]


def test_a_process_that_ends_before_it_is_ready_says_why(tmp_path: Path) -> None:
    with (
        Process([sys.executable, "-c", "raise SystemExit('no such port')"], name="bad", directory=tmp_path) as process,
        pytest.raises(CannotStart, match="no such port"),
    ):
        process.await_line("ready")

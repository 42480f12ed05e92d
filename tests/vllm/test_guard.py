"""No process of a test outlives the test run, however that ends. Needs no engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.vllm.guard import Guarded
from tests.vllm.servers import ROOT

LIMIT_S = 20.0
HOUSE = ["sh", "-c", "sleep 1000 & echo $! > child; wait"]
"""A command with a child of its own, as vLLM is."""


def wait_for(file: Path) -> int:
    until = time.monotonic() + LIMIT_S
    while not (file.exists() and file.read_text().strip()):
        assert time.monotonic() < until, f"{file.name} was not written"
        time.sleep(0.01)
    return int(file.read_text())


def ends(pid: int) -> bool:
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def house(folder: Path) -> list[str]:
    return [word.replace("> child", f"> {folder / 'child'}") for word in HOUSE]


def test_killing_the_group_ends_grandchildren_too(tmp_path: Path) -> None:
    guarded = Guarded(house(tmp_path), log=tmp_path / "log")
    grandchild = wait_for(tmp_path / "child")
    assert guarded.alive()
    guarded.kill_group()
    assert ends(grandchild)
    assert not guarded.alive()


def test_a_command_that_ends_by_itself_leaves_nothing_behind_after_terminate(tmp_path: Path) -> None:
    guarded = Guarded(house(tmp_path), log=tmp_path / "log")
    grandchild = wait_for(tmp_path / "child")
    assert guarded.terminate(LIMIT_S)
    assert ends(grandchild)


def test_a_test_run_that_is_killed_takes_its_processes_with_it(tmp_path: Path) -> None:
    story = f"""
import pathlib, time
from tests.vllm.guard import Guarded
guarded = Guarded({house(tmp_path)!r}, log=pathlib.Path({str(tmp_path / "log")!r}))
time.sleep(1000)
"""
    run = subprocess.Popen([sys.executable, "-c", story], cwd=ROOT)
    grandchild = wait_for(tmp_path / "child")
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert ends(grandchild)

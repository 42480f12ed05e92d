"""Child processes of a measurement: pinned to a core, watched through /proc, never left behind.

It starts, measures and stops; what runs and why is said elsewhere (peers/, compare.py, replay.py). Linux only, like the
measurements: CPU comes from the kernel's per-process clocks (clock_gettime(2), nanoseconds, ended threads included),
memory from smaps_rollup (PSS, so that pages shared by a tree count once).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec


class CannotStart(RuntimeError):  # noqa: N818 - reads as what it is where it is caught
    """A process did not become ready; the message carries the end of its log."""


class Usage(msgspec.Struct, frozen=True):
    """What a process and its descendants have used so far, and hold now."""

    cpu_s: float
    memory_bytes: int


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


class Process:
    """A child in a process group of its own; leaving its context stops the group."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        directory: Path,
        core: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        wrapped = [*_die_with_us(), *([] if core is None else _on_core(core)), *command]
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                wrapped,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def usage(self) -> Usage:
        pids = [self.pid, *descendants(self.pid)]
        return Usage(sum(map(cpu_s, pids)), sum(map(memory_bytes, pids)))

    def cpu_s(self) -> float:
        return sum(map(cpu_s, [self.pid, *descendants(self.pid)]))

    def await_line(self, start: str, *, limit_s: float = 30.0) -> str:
        """The rest of the first line of its log that begins with `start`."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and self.running:
            for line in self.log.read_text(errors="replace").splitlines(keepends=True):
                if line.startswith(start) and line.endswith("\n"):
                    return line[len(start) :].strip()
            time.sleep(0.02)
        raise CannotStart(f"{self.name} never said {start!r}: {self.last_words()}")

    def last_words(self, limit: int = 600) -> str:
        text = self.log.read_text(errors="replace")[-limit:].strip()
        ended = "" if self.running else f" (it ended with {self._child.returncode})"
        return f"{text or 'its log is empty'}{ended}"

    def stop(self, *, patience_s: float = 5.0) -> None:
        """Ask the group to end, then insist."""
        left = [pid for pid in descendants(self.pid) if pid != self.pid]
        self._signal(signal.SIGTERM)
        try:
            self._child.wait(patience_s)
        except subprocess.TimeoutExpired:
            pass
        self._signal(signal.SIGKILL)
        for pid in left:
            _kill(pid)
        self._child.wait()
        deadline = time.monotonic() + patience_s
        while any(map(memory_bytes, left)) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _signal(self, which: signal.Signals) -> None:
        try:
            os.killpg(self.pid, which)
        except ProcessLookupError:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


class Processes(ExitStack):
    """Several processes that are stopped together, last started first."""

    def start(
        self,
        command: Sequence[str],
        *,
        name: str,
        directory: Path,
        core: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        return self.enter_context(Process(command, name=name, directory=directory, core=core, env=env))


def pin(core: int) -> None:
    """This process, and what it starts unpinned, stays on one core from now on."""
    os.sched_setaffinity(0, {core})


def cpu_s(pid: int) -> float:
    """User and system time of all threads the process has had; 0 once it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def memory_bytes(pid: int) -> int:
    """Proportional set size; resident size where the kernel does not tell it; 0 once the process is gone."""
    for path, field in ((f"/proc/{pid}/smaps_rollup", "Pss:"), (f"/proc/{pid}/status", "VmRSS:")):
        try:
            for line in Path(path).read_text().splitlines():
                if line.startswith(field):
                    return int(line.split()[1]) * 1024
        except OSError:
            continue
    return 0


def core_busy_s(core: int) -> float:
    """Time that a core has not been idle since the machine started, in steps of 10 ms."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _on_core(core: int) -> list[str]:
    return [shutil.which("taskset") or "taskset", "-c", str(core)]


def _die_with_us() -> list[str]:
    """The kernel ends the child if we are killed before we can."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []

"""A child process with all its descendants, ended whenever the test run ends, also by kill -9.

A guard process stands between: it leads the group, starts the command, and kills the group when its standard input
closes, which the kernel does when the test run is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

KILL_LIMIT_S = 10.0

GUARD = """
import os, signal, subprocess, sys, threading
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=sys.stderr)
print(child.pid, flush=True)
threading.Thread(target=child.wait, daemon=True).start()
sys.stdin.buffer.read()
os.killpg(0, signal.SIGKILL)
"""


class Guarded:
    """Runs from construction until `kill_group`; output of all its processes goes to the log."""

    def __init__(self, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as out:
            self._guard = subprocess.Popen(
                [sys.executable, "-c", GUARD, *command],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
                start_new_session=True,
            )
        assert self._guard.stdout is not None
        self.pid = int(self._guard.stdout.readline())

    def alive(self) -> bool:
        """The command itself, not what it started."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    def terminate(self, limit_s: float) -> bool:
        """Ask it to end and give it time; returns whether it did. Whatever is left of the group is killed."""
        until = time.monotonic() + limit_s
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)
        while self.alive() and time.monotonic() < until:
            time.sleep(0.05)
        ended = not self.alive()
        self.kill_group()
        return ended

    def kill_group(self) -> None:
        """What a lost machine looks like: every process at once. Returns when the command is gone too: a large process
        takes its time to die, and until then it would pass for alive."""
        if self._guard.poll() is None:
            os.killpg(self._guard.pid, signal.SIGKILL)
        self._guard.wait()
        until = time.monotonic() + KILL_LIMIT_S
        while self.alive() and time.monotonic() < until:
            time.sleep(0.01)
        for pipe in (self._guard.stdin, self._guard.stdout):
            if pipe is not None:
                pipe.close()

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

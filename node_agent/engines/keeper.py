"""The parent of one engine: starts it in a process group of its own, keeps its logs, and sees that nothing of it is
left behind, whoever dies first. It decides nothing about restarts and knows no model; that is the agent's business.

Two processes, one program. The outer one (the warden) only waits: it is the subreaper above the inner one, so that
when the inner one (the keeper) is killed, every process of the engine falls to it and is killed too. The keeper is
the engine's parent. It writes a state file by atomic rename, rotates the log by size, and asks the kernel each second
whether an agent still holds the lock of the state directory. Without an agent the engine goes on for a grace time
(an agent that comes back adopts it and no stream notices), then it is drained and killed.

    python -I -S keeper.py < spec.json      # stdin, because the environment of an engine may hold secrets

Signals: SIGTERM drains (the engine's first process gets SIGTERM, the group SIGKILL after the drain time), SIGINT kills
at once. Only the standard library, and no import of ours: it must start in milliseconds and never fail to.

Sources: prctl(2) PR_SET_CHILD_SUBREAPER, proc(5), and what a killed vLLM leaves behind: when the API server dies, its
EngineCore lives on with all its memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
CHECK_S = 1.0
KILL_MARGIN_S = 3.0
"""Beyond the engine's own drain time: it may need a moment to leave after its last stream."""
CENSUS_S = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""When to note which processes belong to the engine; the last figure is the interval from then on."""
START_MARK = b"[keeper: start of generation "
ORPHANED = "the agent was gone for longer than the grace time"


def stat_of(pid: int) -> tuple[str, int, int, int] | None:
    """State letter, process group, session and start time (clock ticks since boot) of a process, None without one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    rest = text[text.rindex(")") + 2 :].split()
    return rest[0], int(rest[2]), int(rest[3]), int(rest[19])


def session_members(session: int) -> list[list[int]]:
    """[pid, start time] of every process of a session."""
    stats = ((int(name), stat_of(int(name))) for name in os.listdir("/proc") if name.isdigit())
    return [[pid, stat[3]] for pid, stat in stats if stat and stat[2] == session and stat[0] != "Z"]


def become_subreaper() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_children() -> None:
    """SIGKILL to each child's group, again and again: killing a parent brings its children up to us."""
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    while children := task.read_text().split():
        for child in map(int, children):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                group = os.getpgid(child)
                os.killpg(group, signal.SIGKILL) if group != os.getpgid(0) else os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def say(text: str) -> None:
    """To keeper.log, which may lie on the same full disk: what cannot be said is not worth an engine."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


class Log:
    """A size-rotated file: `engine.log`, and `engine.log.1` before it. A full disk loses lines, never an engine."""

    def __init__(self, path: str, limit_bytes: int) -> None:
        self._path, self._limit, self._lost = path, limit_bytes, 0
        self._file = -1

    def write(self, data: bytes) -> None:
        try:
            if self._file < 0:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
            if os.fstat(self._file).st_size + len(data) > self._limit:
                self._rotate()
            if self._lost:
                os.write(self._file, b"[keeper: %d bytes of log were lost: the disk was full]\n" % self._lost)
                self._lost = 0
            os.write(self._file, data)
        except OSError:
            self._lost += len(data)

    def _rotate(self) -> None:
        os.replace(self._path, self._path + ".1")
        fresh = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        os.close(self._file)
        self._file = fresh


class Keeper:
    """One engine from start to end."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.log = Log(spec["log_path"], spec["log_limit_bytes"])
        self.state: dict[str, Any] = dict(spec["identity"], log_path=spec["log_path"], phase="running", members=[])
        self.state.update(boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        self.state.update(started_unix_ns=time.time_ns())
        self.lock = os.open(spec["agent_lock_path"], os.O_RDONLY | os.O_CREAT, 0o640)
        self.pid = 0
        self.status: int | None = None
        self.drain_asked = self.kill_asked = False
        self.kill_at: float | None = None
        self.agent_seen = self.started = time.monotonic()
        self.censuses = 0
        self.unwritten = False

    def write_state(self, **changes: Any) -> None:
        """On a full disk it is tried again each second: an agent that knows nothing of an engine cannot adopt it."""
        self.state.update(changes)
        path = self.spec["state_path"]
        try:
            with open(path + ".new", "w") as file:
                json.dump(self.state, file)
            os.replace(path + ".new", path)
            self.unwritten = False
        except OSError as error:
            if not self.unwritten:
                say(f"cannot write {path}: {error}")
            self.unwritten = True

    def run(self) -> int:
        me = os.getpid()
        self.state.update(keeper_pid=me, keeper_start=_start(me), warden_pid=os.getppid())
        self.state.update(warden_start=_start(os.getppid()))
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        for number, note in (
            (signal.SIGTERM, self._ask_drain),
            (signal.SIGINT, self._ask_kill),
            (signal.SIGCHLD, _nothing),
        ):
            signal.signal(number, _handler(note))
        try:
            output = self._start_engine()
        except OSError as error:
            self.write_state(phase="exited", exit_code=127, reason=f"cannot start {self.spec['argv'][0]}: {error}")
            return 0
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            selector.register(wake_r, selectors.EVENT_READ)
            while self.status is None:
                ready = {key.fd for key, _ in selector.select(timeout=CHECK_S)}
                if wake_r in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_r, 4096)
                if output in ready and not self._copy_log(output):
                    selector.unregister(output)
                self._step(time.monotonic())
        self._kill_group()
        kill_children()
        self._copy_log(output)
        self.write_state(phase="exited", exit_code=os.waitstatus_to_exitcode(self.status))
        return 0

    def _start_engine(self) -> int:
        self.log.write(START_MARK + b"%d]\n" % self.state["generation"])
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            process = subprocess.Popen(
                self.spec["argv"],
                env=self.spec["env"],
                cwd=self.spec.get("cwd") or None,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        os.set_blocking(read_end, False)
        self.pid = process.pid
        # Popen must not wait for it: `_reap` does, together with every orphan that comes up to us.
        process.returncode = 0
        self.write_state(pid=self.pid, pgid=self.pid, members=[[self.pid, _start(self.pid)]])
        return read_end

    def _step(self, now: float) -> None:
        self._reap()
        if self._agent_is_alive():
            self.agent_seen = now
        if now - self.agent_seen > self.spec["orphan_grace_s"] and self.kill_at is None:
            self.drain_asked = True
            self.state["reason"] = ORPHANED
        if self.drain_asked and self.kill_at is None and self.status is None:
            self.kill_at = now + self.spec["drain_s"] + KILL_MARGIN_S
            self.write_state(phase="stopping")
            # Only the first process: an EngineCore that gets SIGTERM too would not wait for its streams.
            self._signal(signal.SIGTERM)
        if self.kill_asked or (self.kill_at is not None and now >= self.kill_at):
            self._kill_group()
        self._census(now)
        if self.unwritten:
            self.write_state()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.pid:
                    self.status = ended[1]

    def _agent_is_alive(self) -> bool:
        """The agent holds the lock exclusively as long as it lives; the kernel lets go of it however it dies."""
        try:
            fcntl.flock(self.lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(self.lock, fcntl.LOCK_UN)
        return False

    def _census(self, now: float) -> None:
        """Who belongs to the engine, so that a later agent can prove that a left-over group is ours."""
        last = len(CENSUS_S) - 1
        due = CENSUS_S[min(self.censuses, last)] + CENSUS_S[last] * max(0, self.censuses - last)
        if self.status is None and now - self.started >= due:
            self.censuses += 1
            self.write_state(members=session_members(self.pid))

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _copy_log(self, output: int) -> bool:
        """False when nobody can write any more."""
        try:
            while data := os.read(output, 65536):
                self.log.write(data)
        except BlockingIOError:
            return True
        return False

    def _ask_drain(self) -> None:
        self.drain_asked = True

    def _ask_kill(self) -> None:
        self.kill_asked = True


def _start(pid: int) -> int:
    stat = stat_of(pid)
    return stat[3] if stat else 0


def _nothing() -> None:
    """SIGCHLD only has to wake the loop."""


def _handler(note: Callable[[], None]) -> Callable[[int, Any], None]:
    return lambda _number, _frame: note()


def _forward_to(pid: int) -> Callable[[int, Any], None]:
    def forward(number: int, _frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    return forward


def guard(keeper: int) -> int:
    """The warden: wait until the keeper is gone, then kill what it left; by a clean end that is nothing."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _forward_to(keeper))
    while True:
        pid, status = os.wait()
        if pid == keeper:
            kill_children()
            return max(0, os.waitstatus_to_exitcode(status))


def main() -> int:
    spec = json.load(sys.stdin)
    become_subreaper()
    keeper = os.fork()
    if keeper:
        return guard(keeper)
    become_subreaper()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return Keeper(spec).run()


if __name__ == "__main__":
    sys.exit(main())

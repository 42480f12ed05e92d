"""The agent's side of the keepers: start one, read its state file, prove which processes are an engine's, end them.

A state file is a claim; processes are the truth. Nothing is signalled unless a process id has the start time that the
file says, in the same boot of the host, so that no stranger who got the number later is ever hit.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import msgspec

from node_agent.core.reconcile import Found
from node_agent.engines.base import Launch
from node_agent.engines.keeper import stat_of
from wire.settings import SettingsError

KEEPER = Path(__file__).with_name("keeper.py")
LOCK_WAIT_S = 1.0
"""Keepers hold the lock for microseconds each second, to see whether anybody else does."""


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """What a keeper writes."""

    replica: str
    model: str
    generation: int
    config_hash: str
    host: str
    port: int
    phase: str
    boot_id: str = ""
    keeper_pid: int = 0
    keeper_start: int = 0
    warden_pid: int = 0
    warden_start: int = 0
    pid: int = 0
    pgid: int = 0
    members: tuple[tuple[int, int], ...] = ()
    """(process id, start time) of the engine's processes at the last count."""
    started_unix_ns: int = 0
    exit_code: int | None = None
    reason: str = ""
    log_path: str = ""

    @property
    def why_it_ended(self) -> str:
        if self.reason:
            return self.reason
        if self.exit_code is None:
            return "its keeper died"
        return f"killed by signal {-self.exit_code}" if self.exit_code < 0 else f"exited with code {self.exit_code}"


class KeeperOptions(msgspec.Struct, frozen=True, kw_only=True):
    drain_s: float
    orphan_grace_s: float
    log_limit_bytes: int


class StateDir:
    """`agent.lock`, `memory.json`, and per replica a directory with state file and logs."""

    def __init__(self, path: str) -> None:
        self.path = Path(path).resolve()
        self._lock = -1

    def acquire(self) -> None:
        """Hold the lock as long as this process lives. Raise SettingsError when another agent holds it."""
        try:
            (self.path / "engines").mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "agent.lock", os.O_RDWR | os.O_CREAT, 0o640)
        except OSError as error:
            raise SettingsError(f"state_dir {self.path} cannot be used: {error.strerror}") from error
        give_up_at = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    raise SettingsError(
                        f"another node agent runs with state_dir {self.path}; stop it or give this one another"
                    ) from None
                time.sleep(0.02)
            except OSError as error:
                raise SettingsError(f"state_dir {self.path} is on a file system without locks: {error}") from error

    def release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def of(self, replica: str) -> Path:
        return self.path / "engines" / replica

    def log_path(self, replica: str) -> Path:
        return self.of(replica) / "engine.log"

    def read(self, replica: str) -> EngineState | None:
        """None without a state file, or with one that says nothing."""
        try:
            return msgspec.json.decode((self.of(replica) / "state.json").read_bytes(), type=EngineState)
        except (OSError, msgspec.DecodeError):
            return None

    def states(self) -> list[EngineState]:
        names = sorted(path.name for path in (self.path / "engines").iterdir())
        return [state for name in names if (state := self.read(name)) is not None]

    def forget(self, replica: str) -> None:
        with contextlib.suppress(OSError):
            (self.of(replica) / "state.json").unlink()

    def remove(self, replica: str) -> None:
        """All that is left of a replica that this host no longer promises."""
        shutil.rmtree(self.of(replica), ignore_errors=True)

    def start(self, state: EngineState, launch: Launch, options: KeeperOptions) -> subprocess.Popen[bytes]:
        """Start a keeper, and through it the engine. Raise OSError when that fails."""
        directory = self.of(state.replica)
        directory.mkdir(parents=True, exist_ok=True)
        self.forget(state.replica)
        identity = {name: getattr(state, name) for name in ("replica", "model", "generation", "config_hash")}
        spec = {
            "argv": launch.argv,
            "env": launch.env,
            "identity": {**identity, "host": state.host, "port": state.port},
            "state_path": str(directory / "state.json"),
            "log_path": str(self.log_path(state.replica)),
            "agent_lock_path": str(self.path / "agent.lock"),
            **msgspec.to_builtins(options),
        }
        with _keeper_log(directory) as log:
            # No preexec_fn: the agent has threads (gRPC), and Python code after a fork of them may hang.
            keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(KEEPER)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        assert keeper.stdin is not None
        with contextlib.suppress(BrokenPipeError), keeper.stdin:
            keeper.stdin.write(msgspec.json.encode(spec))
        return keeper


def _keeper_log(directory: Path) -> BinaryIO:
    try:
        return open(directory / "keeper.log", "ab")
    except OSError:  # a full disk: the engine matters more
        return open(os.devnull, "ab")


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def is_running(pid: int, start: int) -> bool:
    stat = stat_of(pid) if pid else None
    return stat is not None and stat[3] == start and stat[0] != "Z"


def keeper_alive(state: EngineState) -> bool:
    return state.boot_id == boot_id() and is_running(state.keeper_pid, state.keeper_start)


def engine_alive(state: EngineState) -> bool:
    """Any process that was counted as the engine's and still is in its session: then the group's number is ours."""
    if state.boot_id != boot_id():
        return False
    return any(
        is_running(pid, start) and (stat := stat_of(pid)) is not None and stat[2] == state.pgid
        for pid, start in state.members
    )


def drain(state: EngineState) -> None:
    if keeper_alive(state):
        _signal(state.keeper_pid, signal.SIGTERM)


def kill(state: EngineState) -> None:
    """At once: through the keeper, which also writes down the end, or without it."""
    if keeper_alive(state):
        _signal(state.keeper_pid, signal.SIGINT)
    else:
        kill_group(state)


def kill_group(state: EngineState) -> None:
    if engine_alive(state):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(state.pgid, signal.SIGKILL)


def found(state: EngineState) -> Found:
    return Found(
        replica=state.replica,
        config_hash=state.config_hash,
        generation=state.generation,
        stopping=state.phase == "stopping",
        exited=state.phase == "exited",
        keeper_alive=keeper_alive(state),
        engine_alive=engine_alive(state),
    )


def watched_pid(state: EngineState) -> int:
    """Whose end is the end of everything: the warden, which outlives the keeper; else the keeper. 0: nobody."""
    if state.boot_id != boot_id():
        return 0
    if is_running(state.warden_pid, state.warden_start):
        return state.warden_pid
    return state.keeper_pid if is_running(state.keeper_pid, state.keeper_start) else 0


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

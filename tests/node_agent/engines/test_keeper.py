"""The keeper with real processes: whoever dies, in whatever order, nothing of an engine is left behind.

The engines here are a few lines of Python that fork away as vLLM's processes do.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node_agent.engines import process
from node_agent.engines.base import Launch
from node_agent.engines.keeper import Log
from node_agent.engines.process import EngineState, KeeperOptions, StateDir
from wire.settings import SettingsError

SAFETY_S = 20.0

# A first process, a child in its group, and one that has left for a session of its own.
FAMILY = """
import os, sys, time, signal
def child(away):
    pid = os.fork()
    if pid == 0:
        if away: os.setsid()
        time.sleep(600)
    return pid
pids = [os.getpid(), child(False), child(True)]
open(sys.argv[1], "w").write(" ".join(map(str, pids)) + " ")
print("up", flush=True)
time.sleep(600)
"""
POLITE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"bye"), sys.exit(3)))
os.write(1, b"up")
time.sleep(600)
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"no"))
os.write(1, b"up")
while True: time.sleep(1)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(what: Callable[[], Any]) -> Any:
    give_up_at = time.monotonic() + SAFETY_S
    while not (value := what()):
        assert time.monotonic() < give_up_at, "waited too long"
        time.sleep(0.02)
    return value


class House:
    """A state directory with one engine, and every process that came of it."""

    def __init__(self, path: Path) -> None:
        self.directory = StateDir(str(path / "state"))
        self.directory.acquire()
        self.path = path
        self.pids: set[int] = set()
        self.popen: subprocess.Popen[bytes] | None = None

    def start(self, code: str, *args: str, drain_s: float = 0.5, grace_s: float = 60.0, log_bytes: int = 10**6) -> None:
        claim = EngineState(
            replica="r", model="m", generation=4, config_hash="h", host="127.0.0.1", port=1, phase="running"
        )
        options = KeeperOptions(drain_s=drain_s, orphan_grace_s=grace_s, log_limit_bytes=log_bytes)
        launch = Launch((sys.executable, "-I", "-c", code, *args), dict(os.environ))
        self.popen = self.directory.start(claim, launch, options)

    def state(self) -> EngineState:
        state = eventually(lambda: (found := self.directory.read("r")) and (found.pid or found.exit_code) and found)
        self.pids |= {state.keeper_pid, state.warden_pid, state.pid} - {0}
        return state

    def family(self) -> set[int]:
        file = self.path / "pids"
        self.start(FAMILY, str(file))
        members = {
            int(pid)
            for pid in eventually(lambda: file.exists() and file.read_text().endswith(" ") and file.read_text()).split()
        }
        assert 3 == len(members)
        self.pids |= members
        return members

    def log(self) -> str:
        path = self.directory.log_path("r")
        return path.read_text() if path.exists() else ""

    def ended(self) -> EngineState:
        """The state after everything is over."""
        assert self.popen is not None
        self.popen.wait(SAFETY_S)
        return self.state()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    try:
        yield house
    finally:
        if house.popen is not None:
            house.pids.add(house.popen.pid)
        for pid in house.pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        if house.popen is not None:
            house.popen.wait(SAFETY_S)
        house.directory.release()


def test_the_state_file_says_who_runs_what(house: House) -> None:
    house.start(POLITE)
    state = house.state()
    assert ("r", 4, "h", "running") == (state.replica, state.generation, state.config_hash, state.phase)
    assert process.keeper_alive(state)
    assert process.engine_alive(state)
    assert state.pid == state.pgid == os.getpgid(state.pid)
    assert house.popen is not None
    assert state.warden_pid == house.popen.pid


def test_when_the_first_process_dies_its_whole_family_is_killed(house: House) -> None:
    members = house.family()
    os.kill(house.state().pid, signal.SIGKILL)
    state = house.ended()
    assert ("exited", -9, "killed by signal 9") == (state.phase, state.exit_code, state.why_it_ended)
    assert not any(map(alive, members))


def test_when_the_keeper_is_killed_the_warden_kills_the_family(house: House) -> None:
    members = house.family()
    os.kill(house.state().keeper_pid, signal.SIGKILL)
    assert "its keeper died" == house.ended().why_it_ended
    assert not any(map(alive, members))


def test_when_the_warden_is_killed_the_engine_goes_on_under_its_keeper(house: House) -> None:
    members = house.family()
    state = house.state()
    os.kill(state.warden_pid, signal.SIGKILL)
    assert house.popen is not None
    house.popen.wait(SAFETY_S)
    assert all(map(alive, members))
    assert state.keeper_pid == process.watched_pid(state)
    process.kill(state)
    eventually(lambda: not any(map(alive, members)))


def test_what_is_left_when_both_are_killed_is_found_by_the_state_file_and_killed(house: House) -> None:
    house.start(POLITE)
    state = house.state()
    # Without a keeper nobody reads its log any more; a word too many would end it by itself.
    eventually(lambda: "up" in house.log())
    os.kill(state.warden_pid, signal.SIGSTOP)
    os.kill(state.keeper_pid, signal.SIGKILL)
    os.kill(state.warden_pid, signal.SIGKILL)
    eventually(lambda: not process.watched_pid(state))
    assert alive(state.pid)
    found = process.found(state)
    assert (False, True) == (found.keeper_alive, found.engine_alive)
    process.kill_group(state)
    eventually(lambda: not alive(state.pid))


def test_a_drain_ends_the_engine_by_its_own_will(house: House) -> None:
    house.start(POLITE)
    state = house.state()
    eventually(lambda: "up" in house.log())
    process.drain(state)
    assert 3 == house.ended().exit_code
    assert "bye" in house.log()


def test_an_engine_that_does_not_drain_in_time_is_killed(house: House) -> None:
    house.start(STUBBORN, drain_s=0.1)
    state = house.state()
    eventually(lambda: "up" in house.log())
    process.drain(state)
    assert -9 == house.ended().exit_code
    assert "no" in house.log()


def test_a_kill_ends_at_once(house: House) -> None:
    house.start(STUBBORN, drain_s=600)
    process.kill(house.state())
    assert -9 == house.ended().exit_code


def test_without_an_agent_the_engine_goes_on_for_the_grace_time_and_then_ends(house: House) -> None:
    house.start(POLITE, grace_s=1.2)
    state = house.state()
    eventually(lambda: "up" in house.log())
    house.directory.release()
    assert alive(state.pid)
    ended = house.ended()
    assert "the agent was gone" in ended.why_it_ended
    assert not alive(state.pid)


def test_an_agent_that_comes_back_in_time_changes_nothing(house: House) -> None:
    house.start(POLITE, grace_s=2.5)
    state = house.state()
    house.directory.release()
    time.sleep(1.5)
    house.directory.acquire()
    # Beyond the grace time, had nobody come; the keeper looks each second.
    time.sleep(2.5)
    assert alive(state.pid)
    assert "running" == house.state().phase


def test_an_engine_that_cannot_be_started_says_why(house: House) -> None:
    claim = EngineState(replica="r", model="m", generation=1, config_hash="", host="", port=1, phase="running")
    options = KeeperOptions(drain_s=0, orphan_grace_s=60, log_limit_bytes=1000)
    house.popen = house.directory.start(claim, Launch(("/nonexistent/vllm",), {}), options)
    house.popen.wait(SAFETY_S)
    state = house.directory.read("r")
    assert state is not None
    assert "cannot start /nonexistent/vllm" in state.why_it_ended


def test_logs_are_rotated_by_size_and_nothing_of_the_end_is_lost(house: House) -> None:
    house.start("for n in range(20000): print(f'line {n:05}')", log_bytes=100_000)
    assert 0 == house.ended().exit_code
    newest, former = house.directory.log_path("r"), house.directory.log_path("r").with_suffix(".log.1")
    assert newest.read_text().endswith("line 19999\n")
    assert newest.stat().st_size <= 100_000
    assert former.stat().st_size <= 100_000


def test_a_full_disk_loses_lines_of_a_log_and_says_so_when_there_is_room_again(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.symlink_to("/dev/full")
    log = Log(str(path), limit_bytes=5)
    log.write(b"lost\n")
    log.write(b"kept, in a new file\n")
    assert "[keeper: 5 bytes of log were lost: the disk was full]\nkept, in a new file\n" == path.read_text()


def test_a_disk_that_takes_no_byte_ends_no_keeper_and_is_told_all_when_there_is_room(house: House) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # as a full disk, for this process and all that it starts
    try:
        house.start(POLITE)
        assert house.popen is not None
        keeper = int(eventually(lambda: Path(f"/proc/{house.popen.pid}/task/{house.popen.pid}/children").read_text()))
        engine = int(eventually(lambda: Path(f"/proc/{keeper}/task/{keeper}/children").read_text()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    house.pids |= {keeper, engine}
    assert house.directory.read("r") is None
    resource.prlimit(keeper, resource.RLIMIT_FSIZE, (soft, hard))
    assert (keeper, engine) == (house.state().keeper_pid, house.state().pid)


def test_a_log_that_cannot_even_be_opened_is_opened_when_it_can(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "later" / "engine.log"), limit_bytes=1000)
    log.write(b"lost\n")
    (tmp_path / "later").mkdir()
    log.write(b"kept\n")
    said = "[keeper: 5 bytes of log were lost: the disk was full]\nkept\n"
    assert said == (tmp_path / "later" / "engine.log").read_text()


def test_a_stranger_with_the_same_number_is_never_killed(house: House) -> None:
    stranger = subprocess.Popen([sys.executable, "-I", "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        claim = EngineState(
            replica="r",
            model="m",
            generation=1,
            config_hash="",
            host="",
            port=1,
            phase="running",
            boot_id=process.boot_id(),
            keeper_pid=stranger.pid,
            keeper_start=1,
            pid=stranger.pid,
            pgid=stranger.pid,
            members=((stranger.pid, 1),),
        )
        process.kill(claim)
        process.drain(claim)
        assert (False, False) == (process.keeper_alive(claim), process.engine_alive(claim))
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_second_agent_is_refused(house: House) -> None:
    with pytest.raises(SettingsError, match="another node agent runs"):
        StateDir(str(house.directory.path)).acquire()


def test_a_keepers_look_at_the_lock_does_not_keep_an_agent_out(tmp_path: Path) -> None:
    directory = StateDir(str(tmp_path))
    directory.path.mkdir(exist_ok=True)
    looking = os.open(tmp_path / "agent.lock", os.O_RDONLY | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_SH)
    releaser = subprocess.Popen([sys.executable, "-I", "-c", "import time; time.sleep(0.2)"], pass_fds=(looking,))
    os.close(looking)
    try:
        directory.acquire()
    finally:
        releaser.wait()
        directory.release()


def test_a_torn_or_foreign_state_file_is_no_state(house: House) -> None:
    for content in (b"", b"{", b'{"pid": 1}', json.dumps([1]).encode()):
        house.directory.of("r").mkdir(parents=True, exist_ok=True)
        (house.directory.of("r") / "state.json").write_bytes(content)
        assert [] == house.directory.states()

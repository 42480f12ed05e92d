"""`switchyard up` as a person meets it: a first answer, a terminal, Ctrl-C, kill -9. Real processes throughout."""

import json
import os
import pty
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

LIMIT_S = 90.0
MARK = "SWITCHYARD_TEST_MARK"
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
"""A terminal of its own, taken in a process of its own: to fork a process that uses gRPC is asking for trouble."""
SMALL = ("--nodes", "1", "--replicas", "1", "--port", "0")


class Place:
    """A directory and an environment of its own. What is started here carries a mark, so that leftovers are found."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = secrets.token_hex(8)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SWITCHYARD_", "OPENAI_"))}
        self.env = kept | {MARK: self.mark, "TERM": "xterm"}
        self.terminals: list[Terminal] = []

    def terminal(self, *args: str) -> "Terminal":
        self.terminals.append(Terminal(self, *args))
        return self.terminals[-1]

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "control.cli", *args]

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args),
            cwd=self.directory,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def left(self) -> dict[int, str]:
        """Processes that carry the mark, with their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def pid_of(self, words: str) -> int:
        (pid,) = [pid for pid, line in self.left().items() if words in line and "keeper.py" not in line]
        return pid

    def await_empty(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while left := self.left():
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


class Terminal:
    """`switchyard up` in a terminal of its own; keys are typed and the screen is read, as a person does."""

    def __init__(self, place: Place, *args: str) -> None:
        self._fd, inner = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *place.command("up", *args)],
            cwd=place.directory,
            env=place.env,
            stdin=inner,
            stdout=inner,
            stderr=inner,
        )
        os.close(inner)
        self.pid = self._process.pid
        self.text = ""

    def await_text(self, text: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while text not in self.text:
            assert self._read(deadline), f"ended without {text!r}:\n{self.text}"

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def close(self) -> None:
        os.close(self._fd)
        self._process.wait(LIMIT_S)

    def ended(self) -> int:
        """Its exit code, negative for a signal."""
        if self._process.returncode is not None:
            return self._process.returncode
        deadline = time.monotonic() + LIMIT_S
        while self._read(deadline):
            pass
        os.close(self._fd)
        return self._process.wait(LIMIT_S)

    def _read(self, deadline: float) -> bool:
        assert time.monotonic() < deadline, f"too slow:\n{self.text}"
        if not select.select([self._fd], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux's way to say that the last process of the terminal is gone
            return False
        self.text += data.decode(errors="replace")
        return bool(data)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    for pid in found.left():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for terminal in found.terminals:
        terminal.ended()


@pytest.mark.parametrize("registry", ["embedded", "auto"])
def test_one_command_reaches_a_first_answer_and_leaves_nothing_behind(place: Place, registry: str) -> None:
    done = place.run("up", "--once", "--registry", registry, "--port", "0")
    assert 0 == done.returncode, done.stdout + done.stderr
    assert re.search(r"sim-chat: first token after .* tokens/s", done.stdout)
    assert re.search(r"Ready after \d+\.\d s, first token after \d+\.\d s", done.stdout)
    for name in ("registry", "node-1", "node-2", "router", "control"):
        assert re.search(rf"^{name} +ready ", done.stdout, re.MULTILINE), name
        assert re.search(rf"^{name} +stopped ", done.stdout, re.MULTILINE), name
    assert {} == place.left()
    assert {"registry.log", "node-1.log", "node-2.log", "router.log", "control.log"} <= {
        path.name for path in (place.directory / ".switchyard" / "logs").iterdir()
    }


def test_a_person_starts_it_talks_to_it_kills_a_part_and_ends_it_with_ctrl_c(place: Place) -> None:
    terminal = place.terminal(*SMALL)
    terminal.await_text("Ctrl-C stops everything")
    run = json.loads((place.directory / ".switchyard" / "up.json").read_text())
    assert f"curl -N {run['router_url']}/v1/chat/completions" in terminal.text

    nodes = json.loads(place.run("nodes", "--json").stdout)
    assert [("node-1", "2 ready")] == [(node["node"], node["replicas"]) for node in nodes]

    chat = place.run("chat", "--max-tokens", "5", "hello")
    assert 0 == chat.returncode, chat.stderr
    assert chat.stdout.strip()
    assert "5 tokens at" in chat.stderr

    usage = json.loads(place.run("usage", "--json").stdout)
    assert [("development", "sim-chat", 2)] == [(row["tenant"], row["model"], row["requests"]) for row in usage]

    second = place.run("up", "--port", "0")
    assert 1 == second.returncode
    assert f"already running in {place.directory}/.switchyard (process {run['pid']}" in second.stderr

    drained = place.run("drain", "node-1", "--limit", "5s")
    assert 0 == drained.returncode, drained.stderr
    assert "draining" == json.loads(place.run("nodes", "--json").stdout)[0]["state"]
    assert 0 == place.run("undrain", "node-1").returncode

    os.kill(place.pid_of("-m router"), signal.SIGKILL)
    terminal.await_text("router ended (signal 9); starting it again")
    terminal.await_text("router runs again")

    terminal.type("\x03")
    assert 0 == terminal.ended()
    assert {} == place.left()
    assert not (place.directory / ".switchyard" / "up.json").exists()


def test_ctrl_c_twice_ends_it_at_once(place: Place) -> None:
    terminal = place.terminal(*SMALL)
    terminal.await_text("Ctrl-C stops everything")
    os.kill(place.pid_of("-m router"), signal.SIGSTOP)  # a router that would never end by itself
    terminal.type("\x03")
    terminal.await_text("stopping")
    terminal.type("\x03")
    assert 0 == terminal.ended()
    place.await_empty(within_s=30.0)


def test_a_terminal_that_is_closed_ends_it_too(place: Place) -> None:
    terminal = place.terminal(*SMALL)
    terminal.await_text("Ctrl-C stops everything")
    terminal.close()
    place.await_empty(within_s=60.0)


@pytest.mark.parametrize("moment", ["registry", "loading"])
def test_ctrl_c_while_it_starts_leaves_nothing_behind(place: Place, moment: str) -> None:
    terminal = place.terminal(*SMALL)
    terminal.await_text(moment)
    terminal.type("\x03")
    assert terminal.ended() in (0, 130), "0 if it was up before the key arrived"
    assert {} == place.left()


def test_an_agent_that_is_killed_comes_back_and_finds_its_engines_at_work(place: Place) -> None:
    terminal = place.terminal(*SMALL)
    terminal.await_text("Ctrl-C stops everything")
    engines = {pid for pid, line in place.left().items() if "engines.simulated" in line}
    assert engines
    os.kill(place.pid_of("-m node_agent --config"), signal.SIGKILL)
    terminal.await_text("node-1 runs again")
    deadline = time.monotonic() + LIMIT_S
    while [("ready", 1)] != [
        (replica["state"], replica["generation"])
        for replica in json.loads(place.run("replicas", "--json").stdout)
        if replica["model"] == "sim-chat"
    ]:
        assert time.monotonic() < deadline, place.run("replicas").stdout
    assert engines == {pid for pid, line in place.left().items() if "engines.simulated" in line}
    terminal.type("\x03")
    assert 0 == terminal.ended()


def test_a_killed_up_leaves_nothing_behind_and_the_next_one_starts_cleanly(place: Place) -> None:
    terminal = place.terminal(*SMALL, "--grace-s", "1")
    terminal.await_text("Ctrl-C stops everything")
    key = (place.directory / ".switchyard" / "development-key").read_text()
    os.kill(terminal.pid, signal.SIGKILL)
    assert -signal.SIGKILL == terminal.ended()

    again = place.run("up", "--once", *SMALL, "--grace-s", "1")
    assert 0 == again.returncode, again.stdout + again.stderr
    assert key == (place.directory / ".switchyard" / "development-key").read_text()
    place.await_empty(within_s=30.0)


def test_a_killed_up_that_nobody_starts_again_leaves_nothing_behind(place: Place) -> None:
    terminal = place.terminal(*SMALL, "--grace-s", "1")
    terminal.await_text("Ctrl-C stops everything")
    os.kill(terminal.pid, signal.SIGKILL)
    terminal.ended()
    place.await_empty(within_s=30.0)


def test_a_public_port_that_is_taken_is_said_with_the_remedy(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = place.run("up", "--port", str(port))
    assert 1 == done.returncode
    assert f"port {port} is taken by another program; use another with --port " in done.stderr
    assert {} == place.left()


def test_a_part_that_cannot_start_is_named_with_its_log(place: Place) -> None:
    done = place.run("up", "--registry", "etcd", "--etcd-binary", "false", *SMALL)
    assert 1 == done.returncode
    assert "registry ended while starting (exit code 1)" in done.stderr
    assert "registry.log" in done.stderr
    assert {} == place.left()

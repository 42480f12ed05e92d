"""Hosts of their own on one machine: they reach each other until they are cut off, and again when that is healed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from loadtest import network
from loadtest.network import Network

LISTEN = "import socket, sys; s = socket.create_server((sys.argv[1], 7)); print(flush=True)\nwhile True: s.accept()"
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 7), timeout=0.3)"


@pytest.fixture
def wires() -> Iterator[Network]:
    if why := network.missing():
        pytest.skip(why)
    with Network(["a", "b", "c"]) as made:
        yield made


def python(code: str, *args: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code, *args]


def reaches(wires: Network, here: str, there: str) -> bool:
    command = [*wires.command(here), *python(CONNECT, wires.address[there])]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_packets_pass_between_hosts_but_for_those_that_are_cut_off_from_each_other(wires: Network) -> None:
    command = [*wires.command("a"), *python(LISTEN, wires.address["a"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            assert reaches(wires, "b", "a")
            wires.cut("a", "b")
            assert (False, True) == (reaches(wires, "b", "a"), reaches(wires, "c", "a"))
            wires.heal("a", "b")
            assert reaches(wires, "b", "a")
        finally:
            server.kill()


def test_nothing_is_left_behind_even_by_a_process_that_was_killed() -> None:
    if why := network.missing():
        pytest.skip(why)
    lines = ("from loadtest.network import Network", "import os", "Network(['a']).__enter__()")
    code = "\n".join([*lines, "print(os.getpid(), flush=True)", "os._exit(9)"])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pid = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=env).stdout.decode().strip()
    )
    left = [name for name in os.listdir("/run/netns") if name.startswith(f"sy{pid}x")]
    assert 1 == len(left)
    with Network(["b"]):
        pass
    assert [] == [name for name in os.listdir("/run/netns") if name.startswith(f"sy{pid}x")]

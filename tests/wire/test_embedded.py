"""The embedded registry as a process and over a restart; what it does on the wire is in tests/contracts/."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.wire.certificates import Authority
from tests.wire.follower import SAFETY_S, following, values
from tests.wire.servers import etcd_binary, free_ports
from wire.connect import RegistrySettings, connect
from wire.embedded import fresh_store, serve
from wire.embedded_file import DataFile
from wire.etcd import EtcdRegistry
from wire.registry import LeaseLost, RegistryError, RegistryUnavailable
from wire.store import ALL, Put, Range, Store
from wire.tls import TlsFiles


class Process:
    """`python -m wire.embedded` on a port of its own, over restarts."""

    def __init__(self, data_file: Path) -> None:
        self.port = free_ports(1)[0]
        self._data_file = data_file
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when it listens."""
        command = [sys.executable, "-m", "wire.embedded", f"--port={self.port}", f"--data-file={self._data_file}"]
        # -m finds the package by PYTHONPATH in a checkout and by itself when installed.
        root = Path(__file__).parents[2] / "proto"
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
        assert self._process.stdout is not None
        assert f"registry listening on 127.0.0.1:{self.port}" == self._process.stdout.readline().strip()

    def stop(self, number: signal.Signals) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.send_signal(number)
        self._process.stdout.close()
        return self._process.wait(SAFETY_S)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop(signal.SIGKILL)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    found = Process(tmp_path / "sub" / "registry.json")
    try:
        found.start()
        yield found
    finally:
        found.kill()


@contextlib.asynccontextmanager
async def client(port: int, *, tls: TlsFiles | None = None, timeout_s: float = 3.0) -> AsyncIterator[EtcdRegistry]:
    settings = RegistrySettings(endpoints=(f"127.0.0.1:{port}",), tls=tls or TlsFiles(), timeout_s=timeout_s)
    registry = connect(settings)
    try:
        yield registry
    finally:
        await registry.close()


async def test_a_killed_registry_comes_back_with_policies_and_without_leases(process: Process) -> None:
    async with client(process.port) as registry, following(registry, "/") as follower:
        lease = await registry.grant(60)
        await registry.put("/policy", b"1")
        await registry.put("/node", b"1", lease=lease)
        changed = await registry.put("/policy", b"2")
        await follower.until(lambda f: len(f.changes) == 3)
        await asyncio.to_thread(process.kill)
        await follower.until_cut_off()
        assert ["/node", "/policy"] == sorted(follower.view)
        await asyncio.to_thread(process.start)
        await follower.until(lambda f: len(f.snapshots) == 2)
        assert {"/policy": b"2"} == values(follower.view)
        with pytest.raises(LeaseLost):
            await registry.keep_alive(lease, 60)
        assert await registry.put_if("/policy", b"3", revision=changed) is not None


async def test_it_ends_by_sigterm(process: Process) -> None:
    assert 0 == await asyncio.to_thread(process.stop, signal.SIGTERM)


def test_a_taken_port_is_said_in_a_sentence(process: Process) -> None:
    root = Path(__file__).parents[2] / "proto"
    command = [sys.executable, "-m", "wire.embedded", f"--port={process.port}"]
    second = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=SAFETY_S)
    assert 1 == second.returncode
    assert f"wire.embedded: cannot listen on 127.0.0.1:{process.port}" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.etcd
async def test_etcdctl_works_on_it() -> None:
    ctl = etcd_binary().with_name("etcdctl")
    if not ctl.exists():
        pytest.skip(f"no etcdctl beside {etcd_binary()}")
    async with serve("127.0.0.1", 0, fresh_store()) as port:

        async def etcdctl(*arguments: str) -> list[str]:
            command = [str(ctl), f"--endpoints=127.0.0.1:{port}", *arguments]
            done = await asyncio.to_thread(
                subprocess.run, command, check=True, capture_output=True, text=True, env={"ETCDCTL_API": "3"}
            )
            return done.stdout.split()

        assert ["OK"] == await etcdctl("put", "/a", "1")
        lease = (await etcdctl("lease", "grant", "60"))[1]
        assert ["OK"] == await etcdctl("put", "/b", "2", f"--lease={lease}")
        assert ["/a", "1", "/b", "2"] == await etcdctl("get", "--prefix", "/")
        assert lease in await etcdctl("lease", "list")
        assert "keys([/b])" in (
            " ".join(await etcdctl("lease", "timetolive", lease, "--keys")).replace("attached ", "")
        )
        assert ["lease", lease, "revoked"] == await etcdctl("lease", "revoke", lease)
        assert ["1"] == await etcdctl("del", "/a")
        assert [] == await etcdctl("get", "--prefix", "/")


async def test_it_speaks_tls_to_those_whom_its_authority_knows(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    own = TlsFiles(ca=str(authority.ca), cert=cert, key=key)
    async with serve("127.0.0.1", 0, Store(), credentials=own.server_credentials()) as port:
        async with client(port, tls=own) as registry:
            await registry.put("a", b"1")
        for stranger in (TlsFiles(ca=own.ca), TlsFiles()):
            async with client(port, tls=stranger, timeout_s=0.6) as registry:
                with pytest.raises(RegistryUnavailable):
                    await registry.get("a")


async def test_a_value_that_etcd_would_refuse_is_refused() -> None:
    async with serve("127.0.0.1", 0, Store()) as port, client(port) as registry:
        with pytest.raises(RegistryError, match="RESOURCE_EXHAUSTED"):
            await registry.put("a", bytes(3 * 1024 * 1024))


def keys_of(store: Store) -> list[bytes]:
    return [kv.key for kv in store.range(Range(b"", ALL)).kvs]


def test_only_changes_of_keys_without_a_lease_are_written(tmp_path: Path) -> None:
    file = DataFile(tmp_path / "data.json")
    store = file.load(revision=100)
    save = file.follow(store)
    store.grant(7, 60, now=0)
    store.apply([Put(b"leased", b"1", 7)])
    save()
    assert not (tmp_path / "data.json").exists()
    store.apply([Put(b"kept", b"\xff")])
    save()
    written = (tmp_path / "data.json").stat()
    assert 0o600 == written.st_mode & 0o777
    again = file.load(revision=1)
    assert [b"kept"] == keys_of(again)
    assert store.revision < again.revision
    store.apply([Put(b"kept", b"\xff", 7)])
    save()
    assert [] == keys_of(file.load(revision=1))
    assert ["data.json"] == [path.name for path in tmp_path.iterdir()]


def test_a_save_that_failed_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "place").write_text("a file where a directory should be")
    file = DataFile(tmp_path / "place" / "data.json")
    store = Store()
    save = file.follow(store)
    store.apply([Put(b"a")])
    with pytest.raises(FileExistsError):
        save()
    (tmp_path / "place").unlink()
    save()
    assert [b"a"] == keys_of(file.load(revision=1))


def test_a_save_is_due_when_more_happened_than_the_history_holds(tmp_path: Path) -> None:
    file = DataFile(tmp_path / "data.json")
    store = Store(history=2)
    save = file.follow(store)
    for n in range(5):
        store.apply([Put(b"%d" % n)])
    save()
    assert 5 == len(keys_of(file.load(revision=1)))


@pytest.mark.parametrize("text", ["{", '{"revision": 1, "kvs": [], "v": 2}', '{"revision": "x"}'])
def test_a_file_that_cannot_be_understood_is_not_overwritten_with_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"data\.json"):
        DataFile(path).load(revision=1)

"""What our client does when a real etcd is killed, paused, loses its leader, its quorum or our token.

In all of it the event loop keeps running and no exception is left behind (`calm`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.wire.certificates import Authority
from tests.wire.follower import SAFETY_S, Follower, following
from tests.wire.loop import calm
from tests.wire.servers import EtcdMember, etcd, etcd_binary, etcd_cluster, free_ports
from wire.connect import RegistrySettings, connect
from wire.etcd import EtcdRegistry
from wire.etcd_calls import Calls
from wire.etcd_watch import SILENCE_S
from wire.registry import LeaseLost, Registry, RegistryError, RegistryUnavailable
from wire.tls import TlsFiles

pytestmark = pytest.mark.etcd

AT = "/faults/"


@pytest.fixture
def member(tmp_path: Path) -> Iterator[EtcdMember]:
    with etcd(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EtcdMember]]:
    with etcd_cluster(tmp_path_factory.mktemp("cluster")) as members:
        yield members


@pytest.fixture
async def cluster(shared_cluster: list[EtcdMember]) -> AsyncIterator[list[EtcdMember]]:
    """Three members, all of them well before and after the test."""
    yield shared_cluster
    for member in shared_cluster:
        await asyncio.to_thread(member.revive)


@contextlib.asynccontextmanager
async def client(*endpoints: str, timeout_s: float = 3.0) -> AsyncIterator[EtcdRegistry]:
    """Tries the endpoints in the order given."""
    registry = EtcdRegistry(Calls(endpoints, timeout_s=timeout_s))
    try:
        yield registry
    finally:
        await registry.close()


class Writer:
    """Puts without a pause, and remembers which puts were acknowledged."""

    def __init__(self, registry: Registry) -> None:
        self.acknowledged: list[int] = []
        self.failed = 0
        self._registry = registry
        self._stop = asyncio.Event()

    async def run(self) -> None:
        n = 0
        while not self._stop.is_set():
            n += 1
            try:
                self.acknowledged.append(await self._registry.put(f"{AT}{n % 50}", b"%d" % n))
            except RegistryUnavailable:
                self.failed += 1
            await asyncio.sleep(0.005)

    def stop(self) -> None:
        self._stop.set()

    async def gets_on(self) -> None:
        """Until a put is acknowledged that began after now."""
        known = len(self.acknowledged)
        async with asyncio.timeout(SAFETY_S):
            while len(self.acknowledged) < known + 2:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def writing(registry: Registry) -> AsyncIterator[Writer]:
    async with asyncio.TaskGroup() as tasks:
        writer = Writer(registry)
        tasks.create_task(writer.run())
        await writer.gets_on()
        yield writer
        writer.stop()


async def check_nothing_lost(follower: Follower, writer: Writer, registry: Registry) -> None:
    """Every acknowledged put was told once and in order, and the view is what the registry holds."""
    last = await registry.put(f"{AT}last", b"")
    await follower.until(lambda f: f.revisions[-1] >= last)
    told = follower.put_revisions()
    assert sorted(set(told)) == told
    assert set() == set(writer.acknowledged) - set(told) - set(range(follower.snapshots[0].revision + 1))
    assert {e.key: e for e in (await registry.list(AT)).entries} == follower.view
    assert 1 == len(follower.snapshots)


@pytest.mark.parametrize("outage_s", [0.5, pytest.param(30.0, marks=pytest.mark.slow)])
@calm
async def test_a_killed_etcd_costs_time_but_no_event(member: EtcdMember, outage_s: float) -> None:
    async with client(member.endpoint) as registry, following(registry, AT) as follower:
        async with writing(registry) as writer:
            await asyncio.to_thread(member.kill)
            await follower.until_cut_off()
            await asyncio.sleep(outage_s)
            await asyncio.to_thread(member.start)
            await writer.gets_on()
        await check_nothing_lost(follower, writer, registry)
        assert [True, False, True] == follower.connected


@calm
async def test_a_lease_outlives_a_restart_and_goes_on(member: EtcdMember) -> None:
    async with client(member.endpoint) as registry, asyncio.TaskGroup() as tasks:
        lease = await registry.grant(10)
        await registry.put(f"{AT}node", b"1", lease=lease)
        task = tasks.create_task(registry.keep_alive(lease, 10))
        await asyncio.to_thread(member.kill)
        await asyncio.to_thread(member.start)
        await asyncio.to_thread(member.wait_healthy)
        await registry.put(f"{AT}node", b"2", lease=lease)
        assert not task.done()
        task.cancel()


@calm
async def test_a_paused_etcd_is_noticed_by_calls_watches_and_leases(member: EtcdMember) -> None:
    async with client(member.endpoint, timeout_s=1.0) as registry, following(registry, AT) as follower:
        lease = await registry.grant(3)
        await registry.put(f"{AT}node", b"1", lease=lease)
        member.pause()
        async with asyncio.timeout(SAFETY_S):
            with pytest.raises(RegistryUnavailable):
                await registry.get(f"{AT}node")
            with pytest.raises(LeaseLost):
                await registry.keep_alive(lease, 3)
            await follower.until_cut_off()
        assert [f"{AT}node"] == list(follower.view)
        member.resume()
        await follower.until_connected()
        await follower.until(lambda f: not f.view)  # the lease ended meanwhile, and that is told too


@pytest.mark.parametrize("how", ["kill", "pause"])
@calm
async def test_a_lost_leader_is_survived_without_losing_an_event(cluster: list[EtcdMember], how: str) -> None:
    leader = await asyncio.to_thread(leader_of, cluster)
    others = [m for m in cluster if m is not leader]
    async with (
        client(leader.endpoint, *(m.endpoint for m in others)) as registry,
        following(registry, AT) as follower,
        asyncio.TaskGroup() as tasks,
    ):
        lease = await registry.grant(10)
        task = tasks.create_task(registry.keep_alive(lease, 10))
        async with writing(registry) as writer:
            await asyncio.to_thread(getattr(leader, how))
            await follower.until_cut_off()
            await follower.until_connected()
            await writer.gets_on()
        await check_nothing_lost(follower, writer, registry)
        assert leader.endpoint != registry.target
        await registry.put(f"{AT}leased", b"", lease=lease)
        assert not task.done()
        task.cancel()


@calm
async def test_a_lost_quorum_is_told_and_mended(cluster: list[EtcdMember]) -> None:
    alone, *others = cluster
    async with client(alone.endpoint, timeout_s=0.6) as registry, following(registry, AT) as follower:
        await until_available(registry, f"{AT}stays")
        for other in others:
            other.pause()
        async with asyncio.timeout(SAFETY_S):
            await follower.until_cut_off()  # without `hasleader` this member would stay silent
            calls = (registry.get(f"{AT}stays"), registry.put(f"{AT}b", b"1"), registry.grant(60))
            endings = await asyncio.gather(*calls, return_exceptions=True)
            assert [RegistryUnavailable] * len(calls) == [type(ending) for ending in endings]
        assert f"{AT}stays" in follower.view
        for other in others:
            other.resume()
        await follower.until_connected()
        last = await until_available(registry, f"{AT}after")
        await follower.until(lambda f: f.revisions[-1] >= last)


@pytest.mark.parametrize("events", [3000, pytest.param(20_000, marks=pytest.mark.slow)])
@calm
async def test_a_backlog_is_read_to_its_end_over_a_restart(member: EtcdMember, events: int) -> None:
    async with client(member.endpoint) as registry, client(member.endpoint) as other:
        follower = Follower(registry, AT)
        follower.apply(await anext(follower.stream))
        await put_many(other, events)
        for _ in range(2):  # the reader has begun, so that the server dies in the middle of its catching up
            follower.apply(await anext(follower.stream))
        await asyncio.to_thread(member.kill)
        await asyncio.to_thread(member.start)
        async with asyncio.timeout(SAFETY_S):
            while len(follower.changes) < events:
                follower.apply(await anext(follower.stream))
        await follower.stream.aclose()  # type: ignore[attr-defined]
    told = follower.put_revisions()
    assert sorted(set(told)) == told
    assert events == len(told)
    assert 1 == len(follower.snapshots)


@calm
async def test_endpoints_that_are_dead_or_silent_are_passed_over(member: EtcdMember) -> None:
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing, like a paused host
        mute = f"127.0.0.1:{silent.getsockname()[1]}"
        async with asyncio.timeout(SAFETY_S), client(dead, mute, member.endpoint) as registry:
            assert await registry.put_if(f"{AT}a", b"1", revision=0) is not None
        async with asyncio.timeout(SAFETY_S), client(dead, mute, member.endpoint) as registry:
            assert b"1" == (await registry.list(AT)).entries[0].value
        async with client(dead, mute, member.endpoint) as registry, following(registry, AT) as follower:
            assert [f"{AT}a"] == list(follower.view)


class Secured:
    """An etcd with TLS in both directions, users, and tokens that last two seconds."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        cert, key = self.authority.issue("server")
        self.tls = TlsFiles(ca=str(self.authority.ca), cert=cert, key=key)
        self.member = EtcdMember(etcd_binary(), directory)
        client_url = f"https://{self.member.endpoint}"
        self.member.flags = [
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            "--client-cert-auth",
            f"--trusted-ca-file={self.tls.ca}",
            f"--cert-file={cert}",
            f"--key-file={key}",
            "--auth-token-ttl=2",
        ]
        self.password_file = directory / "password"
        self.password_file.write_text("hunter2\n")

    def settings(self, *, tls: TlsFiles | None = None, timeout_s: float = 3.0) -> RegistrySettings:
        return RegistrySettings(
            endpoints=(self.member.endpoint,),
            user="router",
            password_file=str(self.password_file),
            tls=tls or self.tls,
            timeout_s=timeout_s,
        )

    def add_users(self) -> None:
        self._ctl("user", "add", "root:secret")
        self._ctl("user", "grant-role", "root", "root")
        self._ctl("user", "add", "router:hunter2")
        self._ctl("role", "add", "rooms")
        self._ctl("role", "grant-permission", "rooms", "--prefix=true", "readwrite", AT)
        self._ctl("user", "grant-role", "router", "rooms")
        self._ctl("auth", "enable")

    def _ctl(self, *arguments: str) -> None:
        ctl = etcd_binary().with_name("etcdctl")
        if not ctl.exists():
            pytest.skip(f"no etcdctl beside {etcd_binary()}: it makes the users of this test")
        files = (f"--cacert={self.tls.ca}", f"--cert={self.tls.cert}", f"--key={self.tls.key}")
        subprocess.run(
            [ctl, f"--endpoints=https://{self.member.endpoint}", *files, *arguments],
            check=True,
            capture_output=True,
            env={"ETCDCTL_API": "3"},
        )


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    found = Secured(tmp_path)
    try:
        found.member.start()
        found.add_users()  # etcdctl waits for the server
        yield found
    finally:
        found.member.kill()


@calm
async def test_a_token_that_ran_out_or_was_forgotten_is_renewed(secured: Secured) -> None:
    registry = connect(secured.settings())
    async with contextlib.aclosing(Closing(registry)), following(registry, AT) as follower:
        await registry.put(f"{AT}a", b"1")
        await asyncio.sleep(SILENCE_S + 1)
        assert [True] == follower.connected, "an idle watch of a healthy etcd is probed, not given up"
        await registry.put(f"{AT}a", b"2")
        assert await registry.put_if(f"{AT}b", b"1", revision=0) is not None
        await asyncio.to_thread(secured.member.kill)  # a restarted etcd knows no token
        await asyncio.to_thread(secured.member.start)
        last = await until_available(registry, f"{AT}c")
        await follower.until(lambda f: f.revisions[-1] >= last)
        assert 1 == len(follower.snapshots)
        async with following(registry, AT) as second:
            assert follower.view == second.view


@calm
async def test_a_refusal_says_why_and_is_not_repeated(secured: Secured) -> None:
    registry = connect(secured.settings())
    async with contextlib.aclosing(Closing(registry)):
        with pytest.raises(RegistryError, match="permission denied"):
            await registry.put("/elsewhere/a", b"1")
        with pytest.raises(RegistryError, match="permission denied"):
            await anext(registry.watch("/elsewhere/"))
    secured.password_file.write_text("wrong")
    registry = connect(secured.settings())
    async with contextlib.aclosing(Closing(registry)):
        with pytest.raises(RegistryError, match="invalid user ID or password"):
            await registry.get(f"{AT}a")


@calm
async def test_a_client_without_a_certificate_gets_no_connection(secured: Secured) -> None:
    registry = connect(secured.settings(tls=TlsFiles(ca=secured.tls.ca), timeout_s=1.0))
    async with contextlib.aclosing(Closing(registry)):
        with pytest.raises(RegistryUnavailable):
            await registry.get(f"{AT}a")


class Closing:
    """So that `aclosing` closes a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def aclose(self) -> None:
        await self._registry.close()


def leader_of(members: list[EtcdMember]) -> EtcdMember:
    for member in members:
        request = urllib.request.Request(f"http://{member.endpoint}/v3/maintenance/status", data=b"{}", method="POST")
        with urllib.request.urlopen(request, timeout=5) as answer:
            status = json.load(answer)
        if status["leader"] == status["header"]["member_id"]:
            return member
    raise AssertionError("healthy members have a leader")


async def put_many(registry: Registry, count: int) -> None:
    for start in range(0, count, 100):
        await asyncio.gather(*(registry.put(f"{AT}{n % 50}", b"%d" % n) for n in range(start, start + 100)))


async def until_available(registry: Registry, key: str) -> int:
    async with asyncio.timeout(SAFETY_S):
        while True:
            try:
                return await registry.put(key, b"")
            except RegistryUnavailable:
                await asyncio.sleep(0.05)

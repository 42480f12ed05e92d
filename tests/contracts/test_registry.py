"""What every registry must do, whatever is behind it: this process, the embedded server, a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator

import pytest

from tests.wire.follower import SAFETY_S, Follower, following, values
from tests.wire.servers import Proxy, etcd, proxy
from wire.connect import RegistrySettings, connect
from wire.embedded import fresh_store, serve
from wire.embedded_service import SHORTEST_TTL_S
from wire.etcd import EtcdRegistry
from wire.memory import MemoryRegistry
from wire.registry import Changes, Entry, LeaseLost, Registry, RegistryUnavailable, Snapshot
from wire.store import Store

HISTORY = 2000
"""Events that the stores of these tests remember, so that a slow watcher falls behind quickly."""


class Backend:
    """A registry under test, and what a test may do to the world behind it."""

    shortest_ttl_s = 1
    """What it grants when asked for a second."""

    def __init__(self, registry: Registry, other: Registry) -> None:
        self.registry = registry
        self.other = other
        """A second client, which no outage concerns."""

    async def lose_connection(self) -> None:
        raise NotImplementedError

    async def restore_connection(self) -> None:
        raise NotImplementedError

    async def compact(self) -> None:
        raise NotImplementedError

    async def pass_time(self, seconds: float) -> None:
        """Let leases come nearer to their end, in real time only where there is no other."""
        raise NotImplementedError


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


class MemoryBackend(Backend):
    def __init__(self) -> None:
        self._clock = Clock()
        self._store = Store(history=HISTORY)
        self._memory = MemoryRegistry(self._store, clock=self._clock)
        super().__init__(self._memory, MemoryRegistry(self._store, clock=self._clock))

    async def lose_connection(self) -> None:
        self._memory.set_away(True)

    async def restore_connection(self) -> None:
        self._memory.set_away(False)

    async def compact(self) -> None:
        self._memory.compact()

    async def pass_time(self, seconds: float) -> None:
        self._clock.ahead_s += seconds
        self._memory.expire()


class ServedBackend(Backend):
    """A server behind a proxy that can be cut."""

    def __init__(self, between: Proxy, port: int, wait: Callable[[float], Awaitable[None]]) -> None:
        self._between = between
        self._wait = wait
        self._direct = client(f"127.0.0.1:{port}")
        super().__init__(client(between.endpoint), self._direct)

    async def lose_connection(self) -> None:
        await self._between.cut()

    async def restore_connection(self) -> None:
        await self._between.heal()

    async def compact(self) -> None:
        await self._direct.compact((await self._direct.list("nothing/")).revision)

    async def pass_time(self, seconds: float) -> None:
        await self._wait(seconds)


def client(endpoint: str) -> EtcdRegistry:
    return connect(RegistrySettings(endpoints=(endpoint,), timeout_s=2.0))


@contextlib.asynccontextmanager
async def memory_backend() -> AsyncIterator[Backend]:
    yield MemoryBackend()


@contextlib.asynccontextmanager
async def embedded_backend() -> AsyncIterator[Backend]:
    clock = Clock()

    async def wait(seconds: float) -> None:
        clock.ahead_s += seconds

    store = Store(history=HISTORY, revision=fresh_store().revision)
    async with serve("127.0.0.1", 0, store, clock=clock) as port, proxy(port) as between:
        backend = ServedBackend(between, port, wait)
        backend.shortest_ttl_s = SHORTEST_TTL_S
        yield backend


@contextlib.asynccontextmanager
async def etcd_backend(port: int) -> AsyncIterator[Backend]:
    async with proxy(port) as between:
        yield ServedBackend(between, port, asyncio.sleep)


@pytest.fixture(scope="module")
def etcd_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    # Short elections allow a lease of one second.
    with etcd(tmp_path_factory.mktemp("etcd"), flags=["--heartbeat-interval=10", "--election-timeout=100"]) as member:
        yield member.port


@pytest.fixture(params=["memory", "embedded", pytest.param("etcd", marks=pytest.mark.etcd)])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    if request.param == "etcd":
        made = etcd_backend(request.getfixturevalue("etcd_port"))
    else:
        made = {"memory": memory_backend, "embedded": embedded_backend}[request.param]()
    async with made as found:
        yield found
        await found.registry.close()
        await found.other.close()


@pytest.fixture
def registry(backend: Backend) -> Registry:
    return backend.registry


@pytest.fixture
def at(request: pytest.FixtureRequest) -> str:
    """A prefix of the test's own: the etcd is shared by the tests."""
    return f"/contract/{request.node.name}/"


# Keys


async def test_an_absent_key_is_none(registry: Registry, at: str) -> None:
    assert await registry.get(f"{at}absent") is None


async def test_a_put_is_read_back_with_its_revision(registry: Registry, at: str) -> None:
    revision = await registry.put(f"{at}a", b"1")
    assert Entry(f"{at}a", b"1", revision) == await registry.get(f"{at}a")


async def test_every_put_has_a_higher_revision(registry: Registry, at: str) -> None:
    revisions = [await registry.put(f"{at}a", b"%d" % n) for n in range(5)]
    assert sorted(set(revisions)) == revisions


async def test_a_delete_says_whether_the_key_was_there(registry: Registry, at: str) -> None:
    await registry.put(f"{at}a", b"1")
    assert [True, False] == [await registry.delete(f"{at}a") for _ in range(2)]
    assert await registry.get(f"{at}a") is None


async def test_a_list_holds_the_prefix_and_nothing_beside_it(registry: Registry, at: str) -> None:
    for name in ("a/2", "a/1", "a", "a0", "b", "a/\U0001f600"):
        await registry.put(at + name, b"x")
    assert [f"{at}a/1", f"{at}a/2", f"{at}a/\U0001f600"] == [e.key for e in (await registry.list(f"{at}a/")).entries]


async def test_a_list_is_of_one_revision_however_many_pages_it_has(backend: Backend, at: str) -> None:
    names = [f"{at}{n:05}" for n in range(2500)]
    for start in range(0, len(names), 100):
        await asyncio.gather(*(backend.registry.put(name, b"x", lease=0) for name in names[start : start + 100]))
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await backend.other.put(names[-1], b"y")
            await backend.other.put(names[0], b"y")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        for _ in range(3):
            snapshot = await backend.registry.list(at)
            assert names == [e.key for e in snapshot.entries]
            assert all(e.revision <= snapshot.revision for e in snapshot.entries)
        stop.set()


async def test_an_empty_prefix_lists_every_key(registry: Registry, at: str) -> None:
    await registry.put(f"{at}a", b"1")
    assert f"{at}a" in [e.key for e in (await registry.list("")).entries]


# Compare and put


async def test_put_if_revision_zero_creates_a_key_once(registry: Registry, at: str) -> None:
    first = await registry.put_if(f"{at}a", b"1", revision=0)
    assert first is not None
    assert await registry.put_if(f"{at}a", b"2", revision=0) is None
    assert Entry(f"{at}a", b"1", first) == await registry.get(f"{at}a")


async def test_put_if_refuses_a_writer_who_saw_an_older_value(registry: Registry, at: str) -> None:
    seen = await registry.put(f"{at}a", b"1")
    changed = await registry.put_if(f"{at}a", b"2", revision=seen)
    assert changed is not None
    assert await registry.put_if(f"{at}a", b"3", revision=seen) is None
    assert await registry.put_if(f"{at}absent", b"3", revision=seen) is None
    assert {f"{at}a": b"2"} == values({e.key: e for e in (await registry.list(at)).entries})


async def test_of_many_who_compare_and_put_at_once_one_wins(backend: Backend, at: str) -> None:
    writers = [backend.registry, backend.other] * 10
    won = await asyncio.gather(*(w.put_if(f"{at}a", b"%d" % n, revision=0) for n, w in enumerate(writers)))
    assert 1 == sum(revision is not None for revision in won)


# Leases


async def test_a_lease_that_expires_deletes_its_keys(backend: Backend, at: str) -> None:
    lease = await backend.registry.grant(1)
    await backend.registry.put(f"{at}a", b"1", lease=lease)
    await backend.registry.put(f"{at}b", b"1")
    async with following(backend.registry, at) as follower:
        assert lease == follower.view[f"{at}a"].lease
        await backend.pass_time(2.0)
        await follower.until(lambda f: f"{at}a" not in f.view)
    assert {f"{at}b": b"1"} == values(follower.view)
    async with asyncio.timeout(SAFETY_S):
        with pytest.raises(LeaseLost):
            await backend.registry.keep_alive(lease, 1)


async def test_a_lease_lives_as_long_as_it_is_kept_alive(backend: Backend, at: str) -> None:
    lease = await backend.registry.grant(1)
    await backend.registry.put(f"{at}a", b"1", lease=lease)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(backend.registry.keep_alive(lease, 1))
        await asyncio.sleep(1.3 * backend.shortest_ttl_s)
        task.cancel()
    assert await backend.registry.get(f"{at}a") is not None


async def test_a_keep_alive_learns_that_its_lease_was_revoked(backend: Backend, at: str) -> None:
    lease = await backend.registry.grant(1)

    async def keep() -> None:
        with pytest.raises(LeaseLost):
            await backend.registry.keep_alive(lease, 1)

    async with asyncio.timeout(SAFETY_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(keep())
        await backend.registry.put(f"{at}a", b"1", lease=lease)
        await backend.other.revoke(lease)


async def test_keys_go_at_once_with_a_revoked_lease(registry: Registry, at: str) -> None:
    lease = await registry.grant(60)
    for name in "abc":
        await registry.put(at + name, b"1", lease=lease)
    await registry.revoke(lease)
    assert () == (await registry.list(at)).entries


async def test_an_unknown_lease_can_be_revoked_but_not_used(registry: Registry, at: str) -> None:
    await registry.revoke(12345)
    with pytest.raises(LeaseLost):
        await registry.put(f"{at}a", b"1", lease=12345)
    with pytest.raises(LeaseLost):
        await registry.put_if(f"{at}a", b"1", revision=0, lease=12345)
    with pytest.raises(LeaseLost):
        await registry.keep_alive(12345, 60)
    assert await registry.get(f"{at}a") is None


async def test_a_key_belongs_to_the_lease_it_was_last_put_under(registry: Registry, at: str) -> None:
    old, new = await registry.grant(60), await registry.grant(60)
    await registry.put(f"{at}moved", b"1", lease=old)
    await registry.put(f"{at}moved", b"1", lease=new)
    await registry.put(f"{at}freed", b"1", lease=old)
    await registry.put(f"{at}freed", b"1")
    await registry.revoke(old)
    assert [f"{at}freed", f"{at}moved"] == [e.key for e in (await registry.list(at)).entries]
    await registry.revoke(new)
    assert [f"{at}freed"] == [e.key for e in (await registry.list(at)).entries]


# Watches


async def test_a_watch_begins_with_a_snapshot_and_goes_on_with_changes_in_order(registry: Registry, at: str) -> None:
    await registry.put(f"{at}before", b"0")
    async with following(registry, at) as follower:
        assert {f"{at}before": b"0"} == values(follower.view)
        await registry.put(f"{at}a", b"1")
        await registry.put(f"{at[:-1]}0beside", b"1")
        await registry.put(f"{at}a", b"2")
        last = await registry.put(f"{at}b", b"3")
        await registry.delete(f"{at}a")
        await follower.until(lambda f: len(f.changes) >= 4)
    told = [(c.key[len(at) :], c.entry and c.entry.value) for c in follower.changes]
    assert [("a", b"1"), ("a", b"2"), ("b", b"3"), ("a", None)] == told
    assert last + 1 == follower.revisions[-1]
    assert 1 == len(follower.snapshots)


async def test_a_watch_of_an_empty_prefix_begins_with_an_empty_snapshot(registry: Registry, at: str) -> None:
    async with following(registry, at) as follower:
        assert () == follower.snapshots[0].entries


async def test_no_change_is_lost_or_told_twice_while_many_write(backend: Backend, at: str) -> None:
    acknowledged: list[int] = []

    async def write(writer: int) -> None:
        client = backend.registry if writer % 2 else backend.other
        for n in range(40):
            acknowledged.append(await client.put(f"{at}{writer}/{n % 7}", b"%d" % n))
            if n % 10 == 9:
                await client.delete(f"{at}{writer}/{n % 7}")

    followers: list[Follower] = []
    async with contextlib.AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as tasks:
            for writer in range(6):
                tasks.create_task(write(writer))
                followers.append(await stack.enter_async_context(following(backend.registry, at)))
        final = await backend.other.list(at)
        await backend.other.put(f"{at}end", b"")
        for follower in followers:
            await follower.until(lambda f: f"{at}end" in f.view)
    for follower in followers:
        del follower.view[f"{at}end"]
        assert {e.key: e for e in final.entries} == follower.view
        told = follower.put_revisions()[:-1]
        assert [r for r in acknowledged if r > follower.snapshots[0].revision] == sorted(told, key=acknowledged.index)
        assert sorted(set(told)) == told


async def test_a_slow_watcher_gets_all_changes_or_a_new_snapshot(backend: Backend, at: str) -> None:
    follower = Follower(backend.registry, at)
    follower.apply(await anext(follower.stream))
    total = 2 * HISTORY
    for start in range(0, total, 100):
        puts = (backend.other.put(f"{at}{n % 50}", b"%d" % n) for n in range(start, start + 100))
        await asyncio.gather(*puts)
    final = await backend.other.list(at)
    # Not the revision of the whole registry: a lease of another prefix may end at any moment and raise it.
    newest = max(entry.revision for entry in final.entries)
    async with asyncio.timeout(SAFETY_S):
        while follower.revisions[-1] < newest:
            follower.apply(await anext(follower.stream))
    await close(follower.stream)
    assert {e.key: e for e in final.entries} == follower.view
    if len(follower.snapshots) == 1:
        assert total == len(follower.changes)


async def test_a_watch_starts_over_when_history_was_compacted_in_an_outage(backend: Backend, at: str) -> None:
    await backend.other.put(f"{at}goes", b"1")
    async with following(backend.registry, at) as follower:
        await backend.lose_connection()
        await follower.until_cut_off()
        assert {f"{at}goes": b"1"} == values(follower.view)
        await backend.other.put(f"{at}comes", b"1")
        await backend.other.delete(f"{at}goes")
        await backend.compact()
        await backend.restore_connection()
        await follower.until(lambda f: len(f.snapshots) == 2)
        assert {f"{at}comes": b"1"} == values(follower.view)
        assert [] == follower.changes
        await backend.other.put(f"{at}later", b"1")
        await follower.until(lambda f: f"{at}later" in f.view)


async def test_a_watch_that_is_left_ends(registry: Registry, at: str) -> None:
    stream = registry.watch(at)
    assert isinstance(await anext(stream), Snapshot)
    await close(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


# Outages


async def test_calls_end_with_unavailable_during_an_outage_and_work_after_it(backend: Backend, at: str) -> None:
    registry = backend.registry
    await registry.put(f"{at}a", b"1")
    await backend.lose_connection()
    calls: tuple[Awaitable[object], ...] = (
        registry.get(f"{at}a"),
        registry.list(at),
        registry.put(f"{at}a", b"2"),
        registry.put_if(f"{at}a", b"2", revision=0),
        registry.delete(f"{at}a"),
        registry.grant(60),
        registry.revoke(1),
    )
    async with asyncio.timeout(SAFETY_S):
        endings = await asyncio.gather(*calls, return_exceptions=True)
    assert [RegistryUnavailable] * len(calls) == [type(ending) for ending in endings]
    await backend.restore_connection()
    await eventually(lambda: registry.put(f"{at}a", b"3"))
    assert (await registry.list(at)).entries[0].value == b"3"


async def test_a_watch_survives_an_outage_without_losing_a_change(backend: Backend, at: str) -> None:
    await backend.other.put(f"{at}0", b"0")
    async with following(backend.registry, at) as follower:
        for outage in range(2):
            await backend.lose_connection()
            await follower.until_cut_off()
            for n in range(5):
                await backend.other.put(f"{at}{outage}/{n}", b"%d" % n)
            await backend.restore_connection()
            await follower.until(lambda f, outage=outage: f"{at}{outage}/4" in f.view)  # type: ignore[misc]
            await follower.until_connected()
    assert 10 == len(follower.changes)
    assert 1 == len(follower.snapshots)


async def test_a_watch_that_begins_in_an_outage_begins_after_it(backend: Backend, at: str) -> None:
    await backend.other.put(f"{at}a", b"1")
    await backend.lose_connection()
    async with following(backend.registry, at, started=False) as follower:
        await follower.until(lambda f: f.connected == [False])
        assert [] == follower.snapshots
        await backend.restore_connection()
        await follower.until_connected()
    assert {f"{at}a": b"1"} == values(follower.view)


async def test_a_lease_outlives_an_outage_that_is_shorter_than_its_ttl(backend: Backend, at: str) -> None:
    lease = await backend.registry.grant(10)
    await backend.registry.put(f"{at}a", b"1", lease=lease)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(backend.registry.keep_alive(lease, 10))
        await asyncio.sleep(0.1)
        await backend.lose_connection()
        await asyncio.sleep(0.5)
        await backend.restore_connection()
        await eventually(lambda: backend.registry.put(f"{at}a", b"2", lease=lease))
        assert not task.done()
        task.cancel()


# Ending


async def test_a_closed_registry_says_so_to_calls_watches_and_leases(backend: Backend, at: str) -> None:
    registry = backend.registry
    lease = await registry.grant(60)

    async def use(what: Awaitable[None]) -> None:
        with pytest.raises(RegistryUnavailable):
            await what

    async with asyncio.timeout(SAFETY_S), asyncio.TaskGroup() as tasks:
        follower = Follower(registry, at)
        tasks.create_task(use(follower.run()))
        await follower.until_connected()
        tasks.create_task(use(registry.keep_alive(lease, 60)))
        await asyncio.sleep(0.1)
        await registry.close()
    with pytest.raises(RegistryUnavailable):
        await registry.get(at)
    await registry.close()


async def test_a_cancelled_watch_or_call_ends_by_cancellation(registry: Registry, at: str) -> None:
    follower = Follower(registry, at)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(follower.run())
        await follower.until(lambda f: bool(f.snapshots))
        task.cancel()
    assert task.cancelled()


async def eventually(call: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(SAFETY_S):
        while True:
            try:
                await call()
                return
            except RegistryUnavailable:
                await asyncio.sleep(0.05)


async def close(stream: AsyncIterator[Snapshot | Changes]) -> None:
    assert isinstance(stream, AsyncGenerator)
    await stream.aclose()

"""The registry on etcd: the contract of registry.py in etcd's words. One of few doors to gRPC, and a thin one.

How calls are retried and limited is in `etcd_calls.py`, leases in `etcd_lease.py`, the watch in `etcd_watch.py`.
Why no existing client is used is in the README of this room. `connect.connect` makes one from settings.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from wire.etcd_calls import Calls, HistoryLost
from wire.etcd_lease import keep_alive
from wire.etcd_methods import COMPACT, DELETE_RANGE, LEASE_GRANT, LEASE_REVOKE, PUT, RANGE, TXN
from wire.etcd_v3 import etcd_pb2 as pb
from wire.etcd_watch import entry, watch
from wire.registry import Changes, Entry, LeaseLost, RegistryUnavailable, Snapshot
from wire.store import ALL, prefix_end

PAGE_KEYS = 1000
LIST_TRIES = 3


class EtcdRegistry:
    """Implements `wire.registry.Registry`. What is safe to repeat is repeated; the rest is sent once."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    @property
    def target(self) -> str:
        """The endpoint in use, for logs and metrics."""
        return self._calls.target

    async def get(self, key: str) -> Entry | None:
        answer = await self._calls.unary(RANGE, pb.RangeRequest(key=_bytes(key)))
        return entry(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Snapshot:
        return (await self._list(prefix))[0]

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        request = pb.PutRequest(key=_bytes(key), value=value, lease=lease)
        # A key under a lease has one writer, so that writing it twice is harmless; another key may have more.
        return (await self._calls.unary(PUT, request, once=not lease)).header.revision

    async def put_if(self, key: str, value: bytes, *, revision: int, lease: int = 0) -> int | None:
        where, equal, mod = _bytes(key), pb.Compare.EQUAL, pb.Compare.MOD
        put = pb.RequestOp(request_put=pb.PutRequest(key=where, value=value, lease=lease))
        compare = pb.Compare(result=equal, target=mod, key=where, mod_revision=revision)
        answer = await self._calls.unary(TXN, pb.TxnRequest(compare=[compare], success=[put]), once=True)
        return answer.header.revision if answer.succeeded else None

    async def delete(self, key: str) -> bool:
        request = pb.DeleteRangeRequest(key=_bytes(key))
        return (await self._calls.unary(DELETE_RANGE, request, once=True)).deleted > 0

    async def grant(self, ttl_s: int) -> int:
        # An answer that was lost leaves a lease that nobody keeps alive: it ends by itself.
        return (await self._calls.unary(LEASE_GRANT, pb.LeaseGrantRequest(TTL=ttl_s))).ID

    async def keep_alive(self, lease: int, ttl_s: int) -> None:
        await keep_alive(self._calls, lease, ttl_s)

    async def revoke(self, lease: int) -> None:
        try:
            await self._calls.unary(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease))
        except LeaseLost:
            pass

    def watch(
        self, prefix: str, *, on_connected: Callable[[bool], None] = lambda _: None
    ) -> AsyncGenerator[Snapshot | Changes, None]:
        return watch(self._calls, self._list, prefix, on_connected)

    async def compact(self, revision: int) -> None:
        """Forget history before a revision. Production lets etcd do this by itself (see README); tests ask for it."""
        await self._calls.unary(COMPACT, pb.CompactionRequest(revision=revision, physical=True))

    async def close(self) -> None:
        await self._calls.close()

    async def _list(self, prefix: str) -> tuple[Snapshot, int]:
        for _ in range(LIST_TRIES):
            try:
                return await self._pages(prefix)
            except HistoryLost:
                continue  # compacted between two pages
        raise RegistryUnavailable(f"history is compacted faster than {prefix!r} can be read")

    async def _pages(self, prefix: str) -> tuple[Snapshot, int]:
        """All pages at the revision of the first."""
        key, end = _bytes(prefix) or ALL, prefix_end(_bytes(prefix))
        entries: list[Entry] = []
        revision = 0
        while True:
            request = pb.RangeRequest(key=key, range_end=end, limit=PAGE_KEYS, revision=revision)
            answer = await self._calls.unary(RANGE, request)
            revision = revision or answer.header.revision
            entries += (entry(kv) for kv in answer.kvs)
            if not answer.more:
                return Snapshot(revision, tuple(entries)), answer.header.cluster_id
            key = answer.kvs[-1].key + b"\x00"


def _bytes(key: str) -> bytes:
    return key.encode(errors="surrogateescape")

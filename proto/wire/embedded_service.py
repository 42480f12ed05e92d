"""The methods of the embedded registry: what each etcd request does to the Store, and which error it gets.

Codes and texts of errors are etcd's, because clients (ours too) read them. Listening and stopping are in
`embedded.py`, the Watch method in `embedded_watch.py`.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from wire.embedded_watch import Context, WatchStream
from wire.embedded_wire import (
    NotServed,
    comparisons,
    delete_answer,
    operation_answer,
    operations,
    put_answer,
    put_of,
    range_answer,
    range_of,
)
from wire.etcd_methods import (
    AUTHENTICATE,
    COMPACT,
    DELETE_RANGE,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_LEASES,
    LEASE_REVOKE,
    LEASE_TIME_TO_LIVE,
    PUT,
    RANGE,
    STATUS,
    TXN,
    WATCH,
    Method,
)
from wire.etcd_v3 import etcd_pb2 as pb
from wire.store import (
    Compacted,
    Delete,
    DuplicateKey,
    FutureRevision,
    KeyNotFound,
    LeaseExists,
    LeaseNotFound,
    Store,
    StoreError,
)

log = logging.getLogger(__name__)

SHORTEST_TTL_S = 2
"""What etcd grants at least, with its default election time-out."""
VERSION = "3.5.0-switchyard"
"""etcdctl wants a version that it can read."""

Handler = Callable[[Any, Any], Awaitable[Any]]

_ERRORS: dict[type[StoreError], tuple[grpc.StatusCode, str]] = {
    LeaseNotFound: (grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found"),
    LeaseExists: (grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: lease already exists"),
    KeyNotFound: (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: key not found"),
    DuplicateKey: (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"),
    Compacted: (grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"),
    FutureRevision: (grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"),
    NotServed: (grpc.StatusCode.UNIMPLEMENTED, "not served by the embedded registry"),
}


class Service:
    def __init__(
        self,
        store: Store,
        *,
        before_answer: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`before_answer` may make durable what was changed; its OSError is the answer then."""
        self._store = store
        self._before_answer = before_answer
        self._clock = clock

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        unary: dict[Method[Any, Any], Callable[[Any], Message]] = {
            RANGE: self.range,
            PUT: self.put,
            DELETE_RANGE: self.delete,
            TXN: self.txn,
            COMPACT: self.compact,
            LEASE_GRANT: self.grant,
            LEASE_REVOKE: self.revoke,
            LEASE_TIME_TO_LIVE: self.time_to_live,
            LEASE_LEASES: self.leases,
            STATUS: self.status,
        }
        found = {m.path: grpc.unary_unary_rpc_method_handler(self._answering(f), *_codec(m)) for m, f in unary.items()}
        found[AUTHENTICATE.path] = grpc.unary_unary_rpc_method_handler(_no_users, *_codec(AUTHENTICATE))
        found[WATCH.path] = grpc.stream_stream_rpc_method_handler(self.watch, *_codec(WATCH))
        found[LEASE_KEEP_ALIVE.path] = grpc.stream_stream_rpc_method_handler(self.keep_alive, *_codec(LEASE_KEEP_ALIVE))
        return found

    def header(self) -> pb.Header:
        return pb.Header(cluster_id=1, member_id=1, revision=self._store.revision, raft_term=1)

    def expire(self) -> None:
        self._store.expire(self._clock())

    def range(self, asked: pb.RangeRequest) -> pb.RangeResponse:
        return range_answer(asked, self._store.range(range_of(asked)), self.header())

    def put(self, asked: pb.PutRequest) -> pb.PutResponse:
        found = self._store.apply([put_of(asked)])[0]
        return put_answer(asked, found, self.header())

    def delete(self, asked: pb.DeleteRangeRequest) -> pb.DeleteRangeResponse:
        found = self._store.apply([Delete(asked.key, asked.range_end)])[0]
        return delete_answer(asked, found, self.header())

    def txn(self, asked: pb.TxnRequest) -> pb.TxnResponse:
        succeeded = self._store.holds(comparisons(asked.compare))
        ops = asked.success if succeeded else asked.failure
        found = self._store.apply(operations(ops))
        header = self.header()
        answers = [operation_answer(op, f, header) for op, f in zip(ops, found, strict=True)]
        return pb.TxnResponse(header=header, succeeded=succeeded, responses=answers)

    def compact(self, asked: pb.CompactionRequest) -> pb.CompactionResponse:
        self._store.compact(asked.revision)
        return pb.CompactionResponse(header=self.header())

    def grant(self, asked: pb.LeaseGrantRequest) -> pb.LeaseGrantResponse:
        lease, ttl_s = asked.ID or secrets.randbits(62) | 1, max(asked.TTL, SHORTEST_TTL_S)
        self._store.grant(lease, ttl_s, self._clock())
        return pb.LeaseGrantResponse(header=self.header(), ID=lease, TTL=ttl_s)

    def revoke(self, asked: pb.LeaseRevokeRequest) -> pb.LeaseRevokeResponse:
        self._store.revoke(asked.ID)
        return pb.LeaseRevokeResponse(header=self.header())

    def time_to_live(self, asked: pb.LeaseTimeToLiveRequest) -> pb.LeaseTimeToLiveResponse:
        self.expire()
        lease = self._store.leases.get(asked.ID)
        if lease is None:
            return pb.LeaseTimeToLiveResponse(header=self.header(), ID=asked.ID, TTL=-1)
        return pb.LeaseTimeToLiveResponse(
            header=self.header(),
            ID=asked.ID,
            TTL=int(lease.deadline - self._clock()),
            grantedTTL=lease.ttl_s,
            keys=sorted(lease.keys) if asked.keys else (),
        )

    def leases(self, _: pb.LeaseLeasesRequest) -> pb.LeaseLeasesResponse:
        leases = [pb.LeaseStatus(ID=lease) for lease in self._store.leases]
        return pb.LeaseLeasesResponse(header=self.header(), leases=leases)

    def status(self, _: pb.StatusRequest) -> pb.StatusResponse:
        return pb.StatusResponse(header=self.header(), version=VERSION, leader=1, raftTerm=1)

    async def keep_alive(
        self, asked: AsyncIterator[pb.LeaseKeepAliveRequest], _: object
    ) -> AsyncIterator[pb.LeaseKeepAliveResponse]:
        async for one in asked:
            ttl_s = self._store.keep_alive(one.ID, self._clock())
            yield pb.LeaseKeepAliveResponse(header=self.header(), ID=one.ID, TTL=ttl_s)

    async def watch(self, asked: AsyncIterator[pb.WatchRequest], context: Context) -> None:
        await WatchStream(self._store, self.header()).serve(asked, context)

    def _answering(self, method: Callable[[Any], Message]) -> Handler:
        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            try:
                done = method(request)
                self._before_answer()
            except StoreError as error:
                await context.abort(*_ERRORS[type(error)])
            except OSError as error:
                log.error("the registry's data file cannot be written: %s", error)
                await context.abort(grpc.StatusCode.INTERNAL, f"done, but not saved: {error}")
            return done

        return answer


def _codec(method: Method[Any, Any]) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    return method.request.FromString, method.answer.SerializeToString


async def _no_users(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")

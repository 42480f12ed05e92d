"""Between etcd's messages and the Store's words. Pure: no server, no waiting.

What etcd can do and this cannot (sorting, filters by revision, nested transactions, ranges in comparisons) has no
field in our trimmed proto; a nested transaction is refused, because leaving it out would change what was asked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from wire.etcd_v3 import etcd_pb2 as pb
from wire.store import Comparison, Delete, Event, Found, Kv, Op, Put, Range, StoreError

_FIELDS = {
    pb.Compare.VERSION: "version",
    pb.Compare.CREATE: "create_revision",
    pb.Compare.MOD: "mod_revision",
    pb.Compare.VALUE: "value",
    pb.Compare.LEASE: "lease",
}
_HOLDS: dict[int, Callable[[Any, Any], bool]] = {
    pb.Compare.EQUAL: operator.eq,
    pb.Compare.GREATER: operator.gt,
    pb.Compare.LESS: operator.lt,
    pb.Compare.NOT_EQUAL: operator.ne,
}


class NotServed(StoreError):  # noqa: N818 - a part of etcd's API that this server does not have
    pass


def key_value(kv: Kv, *, with_value: bool = True) -> pb.KeyValue:
    return pb.KeyValue(
        key=kv.key,
        value=kv.value if with_value else b"",
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        lease=kv.lease,
    )


def event(happened: Event, *, with_previous: bool) -> pb.Event:
    previous = key_value(happened.prev) if with_previous and happened.prev else None
    kind = pb.Event.DELETE if happened.deleted else pb.Event.PUT
    return pb.Event(type=kind, kv=key_value(happened.kv), prev_kv=previous)


def comparisons(asked: Iterable[pb.Compare]) -> list[Comparison]:
    return [Comparison(c.key, _FIELDS[c.target], _HOLDS[c.result], getattr(c, _FIELDS[c.target])) for c in asked]


def operations(asked: Iterable[pb.RequestOp]) -> list[Op]:
    return [_operation(op) for op in asked]


def _operation(op: pb.RequestOp) -> Op:
    match op.WhichOneof("request"):
        case "request_range":
            return range_of(op.request_range)
        case "request_put":
            return put_of(op.request_put)
        case "request_delete_range":
            return Delete(op.request_delete_range.key, op.request_delete_range.range_end)
        case _:
            raise NotServed("nested transactions are not served here")


def range_of(asked: pb.RangeRequest) -> Range:
    return Range(asked.key, asked.range_end, asked.limit, asked.revision)


def put_of(asked: pb.PutRequest) -> Put:
    return Put(asked.key, asked.value, asked.lease, asked.ignore_value, asked.ignore_lease)


def range_answer(asked: pb.RangeRequest, found: Found, header: pb.Header) -> pb.RangeResponse:
    answer = pb.RangeResponse(header=header, count=found.count)
    if not asked.count_only:
        answer.kvs.extend(key_value(kv, with_value=not asked.keys_only) for kv in found.kvs)
        answer.more = len(found.kvs) < found.count
    return answer


def put_answer(asked: pb.PutRequest, found: Found, header: pb.Header) -> pb.PutResponse:
    previous = key_value(found.kvs[0]) if asked.prev_kv and found.kvs else None
    return pb.PutResponse(header=header, prev_kv=previous)


def delete_answer(asked: pb.DeleteRangeRequest, found: Found, header: pb.Header) -> pb.DeleteRangeResponse:
    answer = pb.DeleteRangeResponse(header=header, deleted=found.count)
    if asked.prev_kv:
        answer.prev_kvs.extend(key_value(kv) for kv in found.kvs)
    return answer


def operation_answer(asked: pb.RequestOp, found: Found, header: pb.Header) -> pb.ResponseOp:
    match asked.WhichOneof("request"):
        case "request_range":
            return pb.ResponseOp(response_range=range_answer(asked.request_range, found, header))
        case "request_put":
            return pb.ResponseOp(response_put=put_answer(asked.request_put, found, header))
        case _:
            answer = delete_answer(asked.request_delete_range, found, header)
            return pb.ResponseOp(response_delete_range=answer)

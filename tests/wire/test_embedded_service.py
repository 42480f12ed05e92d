"""Requests of etcd's API that our own client does not send, as etcdctl and other clients do."""

from __future__ import annotations

import pytest

from wire.embedded_service import SHORTEST_TTL_S, Service
from wire.embedded_wire import NotServed
from wire.etcd_v3 import etcd_pb2 as pb
from wire.store import Store


@pytest.fixture
def service() -> Service:
    return Service(Store(), clock=lambda: 0.0)


def put(key: bytes, value: bytes = b"") -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, prev_kv=True))


def read(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))


def delete(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, prev_kv=True))


def version(key: bytes, result: pb.Compare.Result, number: int) -> pb.Compare:
    return pb.Compare(result=result, target=pb.Compare.VERSION, key=key, version=number)


def test_a_transaction_takes_the_side_that_its_comparisons_say(service: Service) -> None:
    asked = pb.TxnRequest(compare=[version(b"a", pb.Compare.EQUAL, 0)], success=[put(b"a", b"1")], failure=[read(b"a")])
    first, second = service.txn(asked), service.txn(asked)
    assert (True, False) == (first.succeeded, second.succeeded)
    assert b"1" == second.responses[0].response_range.kvs[0].value
    assert first.header.revision == second.header.revision


@pytest.mark.parametrize(
    ("result", "number", "holds"),
    [
        (pb.Compare.GREATER, 0, True),
        (pb.Compare.GREATER, 1, False),
        (pb.Compare.LESS, 2, True),
        (pb.Compare.NOT_EQUAL, 1, False),
    ],
)
def test_comparisons_compare(service: Service, result: pb.Compare.Result, number: int, holds: bool) -> None:
    service.put(pb.PutRequest(key=b"a"))
    assert holds == service.txn(pb.TxnRequest(compare=[version(b"a", result, number)])).succeeded


def test_answers_tell_what_was_there_before(service: Service) -> None:
    service.put(pb.PutRequest(key=b"a", value=b"1"))
    answer = service.txn(pb.TxnRequest(success=[put(b"a", b"2"), put(b"b"), delete(b"c")]))
    assert b"1" == answer.responses[0].response_put.prev_kv.value
    assert not answer.responses[1].response_put.HasField("prev_kv")
    assert 0 == answer.responses[2].response_delete_range.deleted
    gone = service.delete(pb.DeleteRangeRequest(key=b"a", range_end=b"c", prev_kv=True))
    assert [b"2", b""] == [kv.value for kv in gone.prev_kvs]


def test_a_nested_transaction_is_refused_and_changes_nothing(service: Service) -> None:
    with pytest.raises(NotServed):
        service.txn(pb.TxnRequest(success=[put(b"a"), pb.RequestOp()]))
    assert 0 == service.range(pb.RangeRequest(key=b"a")).count


def test_keys_can_be_counted_or_listed_without_values(service: Service) -> None:
    for key in (b"a", b"b", b"c"):
        service.put(pb.PutRequest(key=key, value=b"1"))
    counted = service.range(pb.RangeRequest(key=b"a", range_end=b"\x00", count_only=True))
    assert (3, 0, False) == (counted.count, len(counted.kvs), counted.more)
    page = service.range(pb.RangeRequest(key=b"a", range_end=b"\x00", keys_only=True, limit=2))
    assert (3, [b"", b""], True) == (page.count, [kv.value for kv in page.kvs], page.more)


def test_a_lease_tells_its_time_and_keys_until_it_is_gone(service: Service) -> None:
    lease = service.grant(pb.LeaseGrantRequest(TTL=1)).ID
    service.put(pb.PutRequest(key=b"a", lease=lease))
    told = service.time_to_live(pb.LeaseTimeToLiveRequest(ID=lease, keys=True))
    assert (SHORTEST_TTL_S, SHORTEST_TTL_S, [b"a"]) == (told.TTL, told.grantedTTL, list(told.keys))
    assert [lease] == [one.ID for one in service.leases(pb.LeaseLeasesRequest()).leases]
    service.revoke(pb.LeaseRevokeRequest(ID=lease))
    assert -1 == service.time_to_live(pb.LeaseTimeToLiveRequest(ID=lease)).TTL


def test_a_lease_may_bring_its_own_id(service: Service) -> None:
    assert 7 == service.grant(pb.LeaseGrantRequest(TTL=60, ID=7)).ID

"""Errors as etcd and grpcio really gave them, and what they mean for us."""

from __future__ import annotations

import grpc
import pytest

from wire.etcd_errors import Verdict, judge

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "details", "verdict"),
    [
        (Code.UNAVAILABLE, "failed to connect to all addresses", Verdict.ELSEWHERE),
        (Code.UNAVAILABLE, "etcdserver: no leader", Verdict.ELSEWHERE),
        (Code.UNAVAILABLE, "Stream removed (ping timeout)", Verdict.ELSEWHERE),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", Verdict.ELSEWHERE),
        (Code.CANCELLED, "Received RST_STREAM with error code 8", Verdict.ELSEWHERE),
        (Code.UNKNOWN, "context deadline exceeded", Verdict.ELSEWHERE),
        (Code.UNKNOWN, "Stream removed", Verdict.ELSEWHERE),
        (Code.INTERNAL, "Failed execute_batch", Verdict.ELSEWHERE),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Verdict.ELSEWHERE),
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", Verdict.LOG_IN),
        (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Verdict.LOG_IN),
        (Code.NOT_FOUND, "etcdserver: requested lease not found", Verdict.LEASE_LOST),
        (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Verdict.COMPACTED),
        (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", Verdict.REFUSED),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", Verdict.REFUSED),
        (Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password", Verdict.REFUSED),
        (Code.INVALID_ARGUMENT, "etcdserver: request is too large", Verdict.REFUSED),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Verdict.REFUSED),
        (Code.UNKNOWN, "something nobody has seen", Verdict.REFUSED),
    ],
)
def test_an_error_is_sorted_by_code_and_text(code: grpc.StatusCode, details: str, verdict: Verdict) -> None:
    assert verdict is judge(code, details)

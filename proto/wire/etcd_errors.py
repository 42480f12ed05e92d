"""What an error from etcd means for the caller: try elsewhere, log in again, lease gone, history gone, or no.

Pure. Codes and texts are etcd's (etcd-io/etcd, api/v3rpc/rpctypes/error.go) and grpcio's as measured; the README of
this room lists where each was seen. What is not known here is a refusal: repeating it would not help.
"""

from __future__ import annotations

import enum

import grpc

Code = grpc.StatusCode


class Verdict(enum.Enum):
    ELSEWHERE = "passing trouble of this endpoint or of the cluster"
    LOG_IN = "the token is no longer good"
    LEASE_LOST = "the lease is gone"
    COMPACTED = "the history asked for is gone"
    REFUSED = "a definite no"


# A restarting peer, a lost leader, a broken connection. UNKNOWN and INTERNAL are told apart by their text below.
_PASSING = {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.ABORTED}
_PASSING_TEXTS = (
    "context deadline exceeded",  # a linearizable read without quorum: UNKNOWN
    "context canceled",
    "failed execute_batch",  # grpcio, writing to a stream whose peer has just died: INTERNAL
    "rst_stream",
    "stream removed",
    "too many requests",
    "request timed out",
    "leader changed",
    "no leader",
    "server stopped",
)
_LOG_IN_TEXTS = ("invalid auth token", "revision of auth store is old")


def judge(code: grpc.StatusCode, details: str) -> Verdict:
    text = details.lower()
    if any(part in text for part in _LOG_IN_TEXTS):
        return Verdict.LOG_IN
    if "lease not found" in text:
        return Verdict.LEASE_LOST
    if "has been compacted" in text:
        return Verdict.COMPACTED
    if code in _PASSING or any(part in text for part in _PASSING_TEXTS):
        return Verdict.ELSEWHERE
    return Verdict.REFUSED

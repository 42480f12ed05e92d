"""Keeping a lease alive: a beat every third of the time to live, and a local deadline that is never later than
etcd's own. It decides when a lease is lost; what to do then (grant and register again) is the owner's.

Source: the keep-alive rules of etcd's client (etcd-io/etcd, client/v3/lease.go).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

import grpc
import grpc.aio

from wire.etcd_calls import Calls, Interrupted
from wire.etcd_methods import LEASE_KEEP_ALIVE
from wire.etcd_v3 import etcd_pb2 as pb
from wire.registry import LeaseLost, RegistryError

log = logging.getLogger(__name__)

SHORTEST_LIMIT_S = 0.5
PAUSE_S = 0.2


class LeaseClock:
    """Pure: when to beat, how long to wait for the answer, when to give the lease up."""

    def __init__(self, *, ttl_s: float, now: float) -> None:
        self._ttl_s = ttl_s
        self._deadline = now + ttl_s

    def confirmed(self, *, sent_at: float, ttl_s: float) -> None:
        """Counts from the sending, because etcd's count starts later than that."""
        self._ttl_s = ttl_s
        self._deadline = sent_at + ttl_s

    def lost(self, now: float) -> bool:
        return now >= self._deadline

    @property
    def beat_s(self) -> float:
        return self._ttl_s / 3

    def limit_s(self, now: float) -> float:
        """Time for one answer: two more attempts must fit before the deadline, where the TTL allows it."""
        return min(max(SHORTEST_LIMIT_S, self._ttl_s / 6), max(0.0, self._deadline - now))


async def keep_alive(calls: Calls, lease: int, ttl_s: int) -> None:
    """Run until cancelled. Raises LeaseLost when etcd says so, or when no answer came for a time to live."""
    clock = LeaseClock(ttl_s=ttl_s, now=time.monotonic())
    while not clock.lost(time.monotonic()):
        try:
            async with calls.stream(LEASE_KEEP_ALIVE) as call:
                while True:
                    await _beat(call, lease, clock)
                    await calls.pause(clock.beat_s)
        except LeaseLost:
            raise
        except (Interrupted, RegistryError) as error:
            # Also a definite no, such as a changed password, may be mended before the time is over.
            log.info("keep-alive of lease %x: %s", lease, error)
        await calls.pause(PAUSE_S * random.uniform(0.5, 1.0))
    raise LeaseLost(f"no answer about lease {lease:x} for its time to live")


async def _beat(
    call: grpc.aio.StreamStreamCall[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse], lease: int, clock: LeaseClock
) -> None:
    sent_at = time.monotonic()
    async with asyncio.timeout(clock.limit_s(sent_at)):
        await call.write(pb.LeaseKeepAliveRequest(ID=lease))
        answer = await call.read()
    if not isinstance(answer, pb.LeaseKeepAliveResponse):
        raise Interrupted("the keep-alive stream ended")
    if answer.TTL <= 0:
        raise LeaseLost(f"lease {lease:x} is gone")
    clock.confirmed(sent_at=sent_at, ttl_s=answer.TTL)

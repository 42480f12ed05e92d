"""When a lease is beaten, and when it is given up."""

from __future__ import annotations

import pytest

from wire.etcd_lease import LeaseClock


def test_a_lease_without_an_answer_is_lost_after_its_time_to_live() -> None:
    clock = LeaseClock(ttl_s=9, now=100)
    assert not clock.lost(108.9)
    assert clock.lost(109)


def test_an_answer_counts_from_the_sending_of_its_beat() -> None:
    clock = LeaseClock(ttl_s=9, now=100)
    clock.confirmed(sent_at=103, ttl_s=9)
    assert not clock.lost(111.9)
    assert clock.lost(112)


def test_the_time_to_live_is_the_one_that_etcd_granted() -> None:
    clock = LeaseClock(ttl_s=1, now=0)
    clock.confirmed(sent_at=0, ttl_s=6)
    assert 2 == clock.beat_s
    assert not clock.lost(5.9)


@pytest.mark.parametrize(("ttl_s", "now", "limit_s"), [(12, 0, 2.0), (1, 0, 0.5), (12, 11.5, 0.5), (12, 13, 0.0)])
def test_an_answer_is_waited_for_so_long_that_others_can_still_be_asked(
    ttl_s: float, now: float, limit_s: float
) -> None:
    assert limit_s == LeaseClock(ttl_s=ttl_s, now=0).limit_s(now)

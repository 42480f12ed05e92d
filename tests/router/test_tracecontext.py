"""Which ordinary requests are traced."""

from __future__ import annotations

import random

from router.tracecontext import Sampling, TraceContext


def contexts(sampling: Sampling, *, count: int, now: float, traceparent: bytes = b"") -> int:
    rng = random.Random(1)
    return sum(TraceContext(traceparent, sampling=sampling, rng=rng, now=now).sampled for _ in range(count))


def test_a_share_of_requests_is_traced_and_all_routers_choose_the_same_ones() -> None:
    ids = [random.Random(n).getrandbits(128) for n in range(2000)]
    one, other = (Sampling(ratio=0.25, per_s=1e9) for _ in range(2))
    chosen = [one.chooses(trace_id, 0.0) for trace_id in ids]
    assert chosen == [other.chooses(trace_id, 0.0) for trace_id in ids]
    assert 400 < sum(chosen) < 600
    assert 0 == contexts(Sampling(ratio=0.0, per_s=20.0), count=1000, now=0.0)


def test_however_many_come_a_process_traces_no_more_than_its_limit_a_second() -> None:
    sampling = Sampling(ratio=1.0, per_s=20.0)
    assert 20 == contexts(sampling, count=500, now=100.0)
    assert 10 == contexts(sampling, count=500, now=100.5)
    assert 20 == contexts(sampling, count=500, now=1000.0)


def test_who_is_told_by_its_caller_to_trace_does_so_beyond_the_limit() -> None:
    sampling = Sampling(ratio=1.0, per_s=1.0)
    traceparent = b"00-%032x-%016x-01" % (1, 2)
    assert 50 == contexts(sampling, count=50, now=0.0, traceparent=traceparent)

"""W3C Trace Context: which trace a request belongs to. Free of any SDK, so that untraced requests do not load one."""

from __future__ import annotations

import random

_RANDOM_BITS = (1 << 56) - 1
"""The low 56 bits are random in every trace id, so all routers agree on which requests are traced."""


class Sampling:
    """Which requests are traced that nobody asks to trace and that turn out ordinary: a share of them, and a few a
    second at most. More of them tell nothing new, and spans cost a busy router one request in twenty."""

    def __init__(self, *, ratio: float, per_s: float) -> None:
        """`per_s` is what a process traces in the long run, and at once after a quiet second."""
        self._below = ratio * (_RANDOM_BITS + 1)
        self._per_s = self._left = per_s
        self._at = 0.0

    def chooses(self, trace_id: int, now: float) -> bool:
        if trace_id & _RANDOM_BITS >= self._below:
            return False
        self._left = min(self._per_s, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class TraceContext:
    """Trace and span ids of a request, joined to the caller's `traceparent` where there is a valid one."""

    __slots__ = ("parent_span_id", "sampled", "span_id", "trace_id")

    def __init__(self, traceparent: bytes, *, sampling: Sampling, rng: random.Random, now: float) -> None:
        self.span_id = rng.getrandbits(64) or 1
        parsed = parse_traceparent(traceparent) if traceparent else None
        if parsed is None:
            self.trace_id = rng.getrandbits(128) or 1
            self.parent_span_id = 0
            self.sampled = sampling.chooses(self.trace_id, now)
        else:
            self.trace_id, self.parent_span_id, self.sampled = parsed


def parse_traceparent(value: bytes) -> tuple[int, int, bool] | None:
    """Trace id, parent span id, sampled: W3C Trace Context, version 00 and its forward compatibility."""
    parts = value.split(b"-")
    if len(parts) < 4 or [len(p) for p in parts[:4]] != [2, 32, 16, 2] or parts[0] == b"ff":
        return None
    if parts[0] == b"00" and len(parts) != 4:
        return None
    try:
        trace_id, span_id, flags = (int(p, 16) for p in parts[1:4])
    except ValueError:
        return None
    return (trace_id, span_id, bool(flags & 1)) if trace_id and span_id else None


def format_traceparent(trace_id: int, span_id: int, *, sampled: bool) -> bytes:
    return b"00-%032x-%016x-%02x" % (trace_id, span_id, sampled)

"""W3C Trace Context: which trace a request belongs to. Free of any SDK, so that untraced requests do not load one."""

from __future__ import annotations

import random


class TraceContext:
    """Trace and span ids of a request, joined to the caller's `traceparent` where there is a valid one."""

    __slots__ = ("parent_span_id", "sampled", "span_id", "trace_id")

    def __init__(self, traceparent: bytes, *, ratio: float, rng: random.Random) -> None:
        self.span_id = rng.getrandbits(64) or 1
        parsed = parse_traceparent(traceparent) if traceparent else None
        if parsed is None:
            self.trace_id = rng.getrandbits(128) or 1
            self.parent_span_id = 0
            # The low 56 bits are random in every trace id, so all routers agree on which requests are traced.
            self.sampled = (self.trace_id & ((1 << 56) - 1)) < ratio * (1 << 56)
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

"""What a step, a token and an answer cost on a class of device, before anything was learned.

Only priors: `learn.ClassCost` corrects them by what is seen. A class nobody described gets the figures of an 8B model
on one H100 with wide bounds, because order matters more than scale until the first answers are in.
Sources: routing.md section 3.1 (BLIS coefficients, roofline at 45 % of peak, Splitwise for the cross-check).
"""

from __future__ import annotations

import msgspec


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    overhead_ms: float = 15.6
    """Of the API server, once per request."""
    step_ms: float = 6.9
    """One step without any work (a0)."""
    sequence_ms: float = 0.0046
    """Per decoding sequence and step (a1)."""
    context_ms: float = 0.000076
    """Per KV token read in a step (a2)."""
    prefill_ms: float = 0.036
    """Per prompt token (b1)."""
    attention_ms: float = 1.2e-6
    """Per prompt token and context token (b2)."""
    batch_tokens: float = 2048.0
    kv_tokens: float = 421_000.0
    known: bool = False


H100_8B = Cost(known=True)
H100_70B_TP4 = Cost(
    step_ms=16.6,
    sequence_ms=0.0054,
    context_ms=0.000048,
    prefill_ms=0.080,
    attention_ms=2.6e-6,
    kv_tokens=433_000.0,
    known=True,
)
# A tiny model on the CPU build of vLLM, measured: 3.2 ms between tokens alone, 5.0 ms over 16 streams, 29 ms to the
# first token of 1,024. CPUs differ too much for narrow bounds, so the class is not `known`.
CPU_TINY = Cost(
    overhead_ms=5.0,
    step_ms=3.2,
    sequence_ms=0.11,
    context_ms=0.0,
    prefill_ms=0.02,
    attention_ms=0.0,
    kv_tokens=8192.0,
)

CLASSES: dict[str, Cost] = {
    "h100-80g": H100_8B,
    "h100-80g-tp4": H100_70B_TP4,
    "a100-80g": Cost(step_ms=11.5, prefill_ms=0.115, attention_ms=3.8e-6, known=True),
    "cpu": CPU_TINY,
}


def prior(model: str, device_class: str, table: dict[tuple[str, str], Cost] | None = None) -> Cost:
    """The most exact figures at hand: of the pair, of the device class, of nobody in particular."""
    found = (table or {}).get((model, device_class))
    return found or CLASSES.get(device_class) or Cost()

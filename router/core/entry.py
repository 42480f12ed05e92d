"""What the ledger keeps of one request in flight."""

from __future__ import annotations

import msgspec


class Entry(msgspec.Struct, eq=False, gc=False):
    """One request of ours on the replica. `uncached` counts until the first token, `context` from then on."""

    index: int
    uncached: float
    context: float
    sequences: int
    sent_at: float
    started: bool = False
    expected_ms: float = 0.0
    """Engine time to the first token that was predicted for a node of slowness 1."""
    head_start_s: float = 0.0
    """For so long the engine had been at work on the first in the queue when this one was sent."""

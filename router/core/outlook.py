"""What is kept of a replica between two looks at it."""

from __future__ import annotations

from math import inf

import msgspec


class Outlook(msgspec.Struct, frozen=True, gc=False):
    """What only news and time change of a replica's figures: a request that is sent to it, starts or ends there leaves
    it as it is."""

    until: float
    """It holds up to then, if there are no news; -inf when it changes with time."""
    able: bool
    ready: bool
    ramp: float
    load_ms: float
    health_ms: float


UNSEEN = Outlook(-inf, able=False, ready=False, ramp=1.0, load_ms=0.0, health_ms=0.0)

"""How long a new request would wait behind others, where that is shortest: what admission goes by.

Its own prefill is not in it, and neither is what it would cost to wake a replica: a fleet that is only slow, or asleep,
is not under pressure. Pure. Names as in `score.py`; `step` and prefill contain what was learned of the class and of the
node, and the age of the oldest request that has no token yet.

    ahead = (ceil(steps ahead) step + b1 Q + prefill of other models on the GPU) x slowness
"""

from __future__ import annotations

import numpy as np

from router.core.group import Group
from router.core.pick import panic
from router.core.score import AHEAD, QUEUE, RAMP, READY, SLOW_PREFILL, SLOW_STEP, SPEED, STEPS_AHEAD, Array


def ahead_ms(group: Group, now: float) -> float:
    """Of the ready replica with the least; 0 when none is ready: whoever comes then is not in anybody's way."""
    group.refresh_due(now)
    figures = group.figures
    wait: Array = np.ceil(figures[STEPS_AHEAD])
    wait *= figures[SLOW_STEP]
    wait += figures[QUEUE] * figures[SLOW_PREFILL]
    wait += figures[AHEAD] * figures[SPEED]
    wait /= figures[RAMP]
    able = figures[READY] > 0.0
    if group.barred and not panic(group):
        able[list(group.barred)] = False
    return float(wait[able].min()) if able.any() else 0.0

"""A fixed amount of work, to tell a slower program from a slower machine.

Half a loop of plain Python, half the decoding of 4 kB of JSON: what the router's own code is made of. A cost divided by
it is a figure that can be compared between machines and days, as far as one number can.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

BODY = json.dumps({"text": ["word " * 10] * 75}).encode()


def work() -> int:
    total = 0
    for number in range(500):
        total += number * number % 7
    return total + len(json.loads(BODY))


def best_us(action: Callable[[], object], *, count: int, rounds: int) -> float:
    """Microseconds of CPU per call in the best of several rounds: what others do on the machine only adds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(count):
            action()
        best = min(best, (time.process_time() - start) / count * 1e6)
    return best


def yardstick_us() -> float:
    return best_us(work, count=50, rounds=20)

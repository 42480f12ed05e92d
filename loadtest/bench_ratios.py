"""The hot functions' costs against what was last accepted: `python -m loadtest.bench_ratios`.

Costs are multiples of a fixed piece of work (yardstick.py), so that they can be compared with those of another day. It
ends with 1 when one is dearer than accepted by more than `--slack`; `--accept` writes what was measured as the new
figures, which belongs into the commit that changes them, with the reason.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from loadtest.bench_decision import measure
from loadtest.bench_events import costs_us
from loadtest.bench_plain import plain_us
from loadtest.yardstick import yardstick_us

ACCEPTED = Path(__file__).with_name("accepted_ratios.json")
SIZES = (2, 16, 1000, 10_000)
PARTS = ("hash", "match", "pick", "begin", "first_token", "end", "report")
PROMPT_BYTES = 8192


def measured() -> dict[str, float]:
    """In yardsticks. The yardstick is taken before each part, as machines slow down and speed up while one measures."""
    found: dict[str, float] = {}
    for size in SIZES:
        before = yardstick_us()
        parts = measure(size, PROMPT_BYTES)
        unit = min(before, yardstick_us())
        found |= {f"{part} of {size}": parts[part] / unit for part in PARTS}
    found["plain request"] = plain_us() / yardstick_us()
    before = yardstick_us()
    events = costs_us()
    unit = min(before, yardstick_us())
    found |= {name: cost / unit for name, cost in events.items()}
    return found


def dearer(found: dict[str, float], accepted: dict[str, float], *, slack: float) -> list[str]:
    """Names of the costs that are above what was accepted by more than a share."""
    return [name for name, cost in found.items() if name in accepted and cost > accepted[name] * (1.0 + slack)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench_ratios", description=__doc__)
    parser.add_argument("--slack", type=float, default=0.3, help="share by which a cost may be above the accepted one")
    parser.add_argument("--accept", action="store_true", help="write the figures instead of comparing with them")
    arguments = parser.parse_args()
    found = measured()
    accepted = msgspec.json.decode(ACCEPTED.read_bytes(), type=dict[str, float]) if ACCEPTED.exists() else {}
    for name, cost in found.items():
        print(f"{name:<24} {cost:8.3f} yardsticks, accepted {accepted.get(name, float('nan')):8.3f}")
    if arguments.accept:
        rounded = {name: round(cost, 3) for name, cost in found.items()}
        ACCEPTED.write_bytes(msgspec.json.format(msgspec.json.encode(rounded)) + b"\n")
        return 0
    worse = dearer(found, accepted, slack=arguments.slack)
    print(f"dearer than accepted by more than {arguments.slack:.0%}: {', '.join(worse) or 'nothing'}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())

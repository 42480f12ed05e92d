"""The lines of a start-up: one per process, with its state, what it is doing and how long that took. Pure text; the
terminal is screen.py's business."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from control.core import durations

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
SPINS_PER_S = 10.0
MARKS = {"ready": "✓", "done": "✓", "stopped": "·", "failed": "✗", "waiting": "·", "skipped": "·"}
MOVING = ("starting", "loading", "working", "stopping")
STATE_WIDTH = 10
TIME_WIDTH = 7

Paint = Callable[[str, str], str]


class Row(msgspec.Struct):
    name: str
    state: str = "waiting"
    detail: str = ""
    since: float = 0.0
    """When the work began; seconds on a steady clock."""
    took_s: float = -1.0
    """Of the last work; negative while it runs."""

    def move(self, state: str, detail: str, now: float) -> None:
        """Time counts from the first moving state to the first resting one."""
        if state in MOVING and self.state not in MOVING:
            self.since, self.took_s = now, -1.0
        elif state not in MOVING and self.state in MOVING:
            self.took_s = now - self.since
        self.state, self.detail = state, detail


def line(row: Row, *, now: float, name_width: int, width: int, paint: Paint) -> str:
    """One line that fits `width` columns: a wrapped line would upset redrawing. `paint(state, text)` adds colour."""
    moving = row.state in MOVING
    mark = SPINNER[int(now * SPINS_PER_S) % len(SPINNER)] if moving else MARKS.get(row.state, "·")
    elapsed = now - row.since if moving else row.took_s
    time = durations.show(elapsed) if elapsed >= 0 else ""
    head = f" {row.name:<{name_width}}  "
    state = f"{row.state:<{STATE_WIDTH}}"
    clock = f"{time:>{TIME_WIDTH}}  "
    room = max(0, width - 2 - len(head) - len(state) - len(clock))
    return f" {paint(row.state, mark)}{head}{paint(row.state, state)}{clock}{_fit(row.detail, room)}".rstrip()


def plain(row: Row, *, name_width: int) -> str:
    """For logs and pipes: a line is printed once per change and says it all."""
    took = f" ({durations.show(row.took_s)})" if row.took_s >= 0 else ""
    return f"{row.name:<{name_width}}  {row.state:<{STATE_WIDTH}}{row.detail}{took}".rstrip()


def _fit(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(0, room - 1)] + "…"[:room]

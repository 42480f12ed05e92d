"""What the terminal can show: colour only where someone looks and nobody said NO_COLOR (no-color.org)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

STATE_COLOURS = {
    "ready": "green",
    "done": "green",
    "running": "green",
    "active": "green",
    "loading": "yellow",
    "starting": "yellow",
    "working": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "expired": "red",
    "failed": "red",
    "sleeping": "cyan",
    "stopped": "dim",
    "waiting": "dim",
    "absent": "dim",
    "on_disk": "dim",
    "revoked": "dim",
}


class Style:
    """Wraps text in ANSI codes, or does not."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, name: str, text: str) -> str:
        return f"\x1b[{_CODES[name]}m{text}\x1b[0m" if self._colour and name in _CODES else text

    def state(self, state: str, text: str) -> str:
        """`text` in the colour of a state."""
        return self(STATE_COLOURS.get(state, ""), text)


def style_for(stream: TextIO, env: Mapping[str, str]) -> Style:
    return Style(is_live(stream, env) and not env.get("NO_COLOR"))


def is_live(stream: TextIO, env: Mapping[str, str]) -> bool:
    """May lines be redrawn? Only on a terminal that is not `dumb`."""
    return stream.isatty() and env.get("TERM", "") != "dumb"

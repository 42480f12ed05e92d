"""Show a start-up: lines that are redrawn in place on a terminal, one plain line per change elsewhere.

Everything `up` prints goes through here, so that a sentence never lands in the middle of a redrawn block.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from typing import TextIO

from control.core import startup
from control.core.startup import Row
from control.terminal import Style, is_live, style_for

REDRAW_S = 0.1


class Screen:
    def __init__(self, out: TextIO, env: Mapping[str, str], *, clock: Callable[[], float]) -> None:
        self._out = out
        self._clock = clock
        self._rows: dict[str, Row] = {}
        self._drawn = 0
        self._gone = False
        self._live = is_live(out, env)
        self.style: Style = style_for(out, env)

    def add(self, *names: str, state: str = "waiting") -> None:
        """Rows in the order they will be shown."""
        for name in names:
            self._rows.setdefault(name, Row(name, state))
        if self._live:
            self._draw()

    def show(self, name: str, state: str, detail: str = "") -> None:
        row = self._rows.setdefault(name, Row(name))
        if (row.state, row.detail) == (state, detail):
            return
        row.move(state, detail, self._clock())
        if self._live:
            self._draw()
        else:
            self._write(startup.plain(row, name_width=self._name_width()) + "\n")

    def detail(self, name: str) -> str:
        return self._rows[name].detail

    def unready(self) -> list[str]:
        return [row.name for row in self._rows.values() if row.state not in ("ready", "done", "stopped")]

    def say(self, text: str = "") -> None:
        """A line that stays, above the block if there is one."""
        self._erase()
        self._write(text + "\n")
        if self._live:
            self._draw()

    def settle(self) -> None:
        """Leave the block as it stands; rows added from here on form a new one."""
        if self._live:
            self._draw()
        self._drawn = 0
        self._rows = {}

    def write(self, text: str) -> None:
        """Raw text, such as an answer as it streams. Only while there is no block."""
        self._write(text)

    async def animate(self) -> None:
        """Turn the wheels and count the seconds, until cancelled."""
        while True:
            await asyncio.sleep(REDRAW_S)
            if self._live and self._rows:
                self._draw()

    def _draw(self) -> None:
        now, width = self._clock(), shutil.get_terminal_size().columns
        lines = [
            startup.line(row, now=now, name_width=self._name_width(), width=width, paint=self.style.state)
            for row in self._rows.values()
        ]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._write(up + "".join(f"\x1b[2K{line}\n" for line in lines))
        self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            self._write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0

    def _name_width(self) -> int:
        return max((len(name) for name in self._rows), default=0)

    def _write(self, text: str) -> None:
        """A terminal that was closed must not keep `up` from ending its processes in order."""
        if self._gone:
            return
        try:
            self._out.write(text)
            self._out.flush()
        except OSError:
            self._gone = True

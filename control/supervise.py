"""The child processes of `switchyard up`: start each behind a keeper, notice when one ends, end them in good order.

It knows nothing of what they do. A keeper (keeper.py) sees to it that a child never outlives this process.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

POLL_S = 0.05
LOG_TAIL_BYTES = 4000
KEEPER = Path(__file__).with_name("keeper.py")


class Child:
    """One process, startable again after it ended. Its output goes to one log file."""

    def __init__(
        self, name: str, argv: Sequence[str], *, log: Path, env: Mapping[str, str], grace_s: float, lock: int
    ) -> None:
        self.name = name
        self.log = log
        self.starts = 0
        self.stopping = False
        self._command = [sys.executable, "-I", "-S", str(KEEPER), f"{grace_s}", *argv]
        self._env = dict(env)
        self._lock = lock
        self._keeper: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """The first start of a run begins the log; the log of the run before is kept beside it."""
        if not self.starts and self.log.exists():
            self.log.replace(self.log.with_suffix(".log.before"))
        self.starts += 1
        with self.log.open("ab") as log:
            self._keeper = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,  # Ctrl-C is ours alone: we end the others, in order
                pass_fds=(self._lock,),
            )

    @property
    def pid(self) -> int:
        """Of its keeper; 0 before the first start."""
        return self._keeper.pid if self._keeper else 0

    def exit_code(self) -> int | None:
        """None while it runs, and before it was started."""
        code = self._keeper.poll() if self._keeper else None
        if code is not None:
            self.close()
        return code

    def runs(self) -> bool:
        return self._keeper is not None and self.exit_code() is None

    async def ended(self) -> int:
        while (code := self.exit_code()) is None:
            await asyncio.sleep(POLL_S)
        return code

    def ask(self, wish: bytes) -> None:
        """`t`: end, please. `k`: end now."""
        self.stopping = True
        if self._keeper and self._keeper.stdin and not self._keeper.stdin.closed:
            with suppress(OSError):
                os.write(self._keeper.stdin.fileno(), wish)

    async def stop(self, *, limit_s: float, now: asyncio.Event) -> bool:
        """Return True if it ended by itself. `now` set: do not wait for that."""
        if not self.runs():
            return True
        self.ask(b"t")
        if await self._ended_within(limit_s, now):
            return True
        self.ask(b"k")
        await self.ended()
        return False

    async def _ended_within(self, limit_s: float, now: asyncio.Event) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.runs() and not now.is_set():
                    await asyncio.sleep(POLL_S)
        return not self.runs()

    def close(self) -> None:
        """Let go of the pipe: whatever still runs behind the keeper ends within its grace time."""
        if self._keeper and self._keeper.stdin:
            with suppress(OSError):
                self._keeper.stdin.close()

    def last_lines(self, count: int = 8) -> list[str]:
        with self.log.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-count:]


def told(code: int) -> str:
    """An exit code in words."""
    return f"signal {code - 128}" if code > 128 else f"exit code {code}"

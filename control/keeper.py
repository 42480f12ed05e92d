"""Stand between `switchyard up` and one process it starts, so that the process never outlives `up`.

    python -I -S keeper.py GRACE_S COMMAND...

Standard input is a pipe that only the parent holds open. On it `t` asks the command to end (SIGTERM) and `k` ends it at
once (SIGKILL, with its process group). When the pipe closes the parent is gone, kill -9 included: the command is asked
to end and after GRACE_S seconds ended. Stdlib only and started without site, so that it costs some 10 ms and 8 MB; a
pipe and not prctl, because it also works off Linux and leaves the command time to end well.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

_PARENT = 0


def main(argv: list[str]) -> int:
    grace_s, command = float(argv[1]), argv[2:]
    signals = _signals()
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    _keep(child, signals, grace_s)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)  # what it left in its group
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _signals() -> int:
    """A descriptor that is readable when the child ended or somebody sent this process a signal to end."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reader


def _keep(child: subprocess.Popen[bytes], signals: int, grace_s: float) -> None:
    """Return when the child has ended."""
    watched, deadline = [_PARENT, signals], float("inf")
    while child.poll() is None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            _signal(child, signal.SIGKILL)
            deadline = float("inf")
            continue
        ready, _, _ = select.select(watched, [], [], min(left_s, 3600.0))
        wish = os.read(_PARENT, 1) if _PARENT in ready else b"-"
        told = os.read(signals, 64) if signals in ready else b""
        if wish == b"k":
            _signal(child, signal.SIGKILL)
        elif wish == b"t":
            _signal(child, signal.SIGTERM)
        elif not wish or set(told) - {signal.SIGCHLD}:
            watched = [signals] if not wish else watched
            _signal(child, signal.SIGTERM)
            deadline = min(deadline, time.monotonic() + grace_s)


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the command; SIGKILL to its whole group, which has no better way to hear of it."""
    with suppress(ProcessLookupError, PermissionError):
        if number is signal.SIGKILL:
            os.killpg(child.pid, number)
        else:
            child.send_signal(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

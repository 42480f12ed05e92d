"""Wall clocks that can be set, process by process, through libfaketime (`apt-get install libfaketime`).

Only the wall clock: monotonic clocks go on, as they do where somebody sets a host's time. etcd is static and keeps its
own.
"""

from __future__ import annotations

import os
from pathlib import Path

LIBRARIES = tuple(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


def missing() -> str:
    return "" if LIBRARIES else "libfaketime is not there; `apt-get install libfaketime`"


def environment(directory: Path, name: str) -> dict[str, str]:
    """For a process whose clock `step` is to move, with all that it starts."""
    step(directory, name, 0)
    return {
        "LD_PRELOAD": os.fspath(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": os.fspath(_file(directory, name)),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def step(directory: Path, name: str, by_s: int) -> None:
    """So far from the true time, within a second."""
    _file(directory, name).write_text(f"{by_s:+d}\n")


def _file(directory: Path, name: str) -> Path:
    return directory / f"clock-{name}"

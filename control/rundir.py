"""The directory of one `switchyard up`: its locks, what other commands may know of it, its logs, its key.

Two locks, both `flock`, so that the kernel lets go of them however a process ends. `up.lock` is held by `up` itself: a
second `up` is told about the first. `children.lock` is inherited by every keeper (keeper.py): while it is held,
processes of a former run are still ending, and the next `up` waits for them instead of guessing at process ids.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from control.errors import Failed


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What `up` tells the other commands, in up.json."""

    pid: int
    region: str
    router_url: str
    control_url: str
    registry_endpoints: tuple[str, ...]
    models: tuple[str, ...]
    journal_dir: str = ""


class RunDir:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.config = path / "config"
        self._state = path / "up.json"
        self._key = path / "development-key"

    def create(self) -> None:
        for directory in (self.path, self.logs, self.config):
            directory.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only `up` in this directory. Raise Failed when there is one."""
        with _opened(self.path / "up.lock") as lock:
            if not _try(lock, fcntl.LOCK_EX):
                raise Failed(_already(self.path, self._read()))
            try:
                yield
            finally:
                self._state.unlink(missing_ok=True)

    @contextmanager
    def children_lock(self) -> Iterator[int]:
        """The descriptor to hand to keepers; `taken` says whether it is ours yet."""
        with _opened(self.path / "children.lock") as lock:
            yield lock

    def running(self) -> Run | None:
        """The `up` that runs here now."""
        run = self._read()
        if run is None:
            return None
        with suppress(OSError), _opened(self.path / "up.lock") as lock:
            return None if _try(lock, fcntl.LOCK_SH) else run
        return None

    def tell(self, run: Run) -> None:
        temporary = self._state.with_suffix(".new")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(run)))
        temporary.replace(self._state)

    def key(self) -> str:
        """The development key; empty when none was made."""
        try:
            return self._key.read_text().strip()
        except OSError:
            return ""

    def keep_key(self, key: str) -> None:
        """Only the owner may read it. The mode is set before the key is written."""
        descriptor = os.open(self._key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, 0o600)
            file.write(key + "\n")

    def _read(self) -> Run | None:
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=Run)
        except (OSError, msgspec.DecodeError):
            return None


def taken(lock: int) -> bool:
    """Take the lock if nobody else holds it."""
    return _try(lock, fcntl.LOCK_EX)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _already(path: Path, run: Run | None) -> str:
    if run is None:
        return f"another `switchyard up` is starting in {path}; wait for it, or give this one a --data-dir of its own."
    return (
        f"`switchyard up` is already running in {path} (process {run.pid}, {run.router_url}); stop it with Ctrl-C or "
        f"`kill {run.pid}`, or give this one a --data-dir and a --port of its own."
    )

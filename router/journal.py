"""The usage journal: an append-only file of lines. A line is in the kernel before its request's last byte is sent, so
a killed router loses none; an fdatasync each second, off the loop, bounds what a power cut can take.

A disk that is full, or a process out of file descriptors, stops no request and no start: lines wait in memory, up to a
limit, and are written when there is room again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from pathlib import Path

from wire.settings import SettingsError

log = logging.getLogger(__name__)

SEGMENT_BYTES = 64 * 1024 * 1024
PENDING_LIMIT_BYTES = 64 * 1024 * 1024
"""About 150,000 records; beyond it new lines are dropped and counted."""
SYNC_INTERVAL_S = 1.0
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO})
"""What may be over in a while, and is no reason not to start."""


class Journal:
    def __init__(self, directory: Path) -> None:
        """Raises SettingsError for a directory that can never be written."""
        self._directory = directory
        self._file = -1
        """-1 while none could be opened."""
        self._size = 0
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._unsynced = False
        self.blocked = False
        """The last try to write failed."""
        self.written = 0
        """Lines in the file since this process began."""
        self.lost = 0
        """Lines dropped because the disk stayed full for too long."""
        self._number = 0
        try:
            self._open_next()
        except OSError as error:
            if error.errno not in _PASSING:
                reason = f"cannot write the usage journal in {directory}: {error.strerror}"
                raise SettingsError(f"{reason}; choose another place with --data-dir") from error
            self._block(error)

    @property
    def path(self) -> Path:
        return self._segment(self._number)

    @property
    def pending(self) -> int:
        """Lines that wait for room on the disk."""
        return len(self._pending)

    def append(self, line: bytes) -> None:
        """Write one whole line, ended by a newline. Never raises and never waits."""
        self._pending.append(line)
        self._pending_bytes += len(line)
        self._flush()
        if self._pending_bytes > PENDING_LIMIT_BYTES:
            self._pending_bytes -= len(self._pending.pop())
            self.lost += 1

    async def run(self) -> None:
        """Sync what was written, and try again what could not be, until cancelled."""
        while True:
            await asyncio.sleep(SYNC_INTERVAL_S)
            self._flush()
            if self._unsynced:
                self._unsynced = False
                await asyncio.to_thread(self._sync)
            if self._size >= SEGMENT_BYTES and not self._pending:
                self._turn()

    def close(self) -> None:
        self._flush()
        if self._file >= 0:
            self._sync()
            os.close(self._file)
        if self._pending:
            log.error("%d usage records could not be written to %s; here they are", len(self._pending), self._directory)
        for line in self._pending:  # they name tenants and counts, no content: a log may hold them
            log.error("unwritten usage record: %s", line.decode(errors="replace").rstrip())

    def _turn(self) -> None:
        """Go on in a new segment; where none can be opened, the full one serves on."""
        full = self._file
        try:
            self._open_next()
        except OSError as error:
            self._block(error)
        else:
            os.close(full)

    def _open_next(self) -> None:
        """A new segment per process and size: a line cut short by a crash then stays the last of its file."""
        self._directory.mkdir(parents=True, exist_ok=True)
        there = (int(path.stem.partition("-")[2]) for path in self._directory.glob("usage-*.jsonl"))
        number = self._number or max(there, default=0)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        while True:
            number += 1
            try:
                self._file = os.open(self._segment(number), flags, 0o600)
            except FileExistsError:
                continue  # another worker of this directory was first
            self._number, self._size = number, 0
            return

    def _segment(self, number: int) -> Path:
        return self._directory / f"usage-{number:06d}.jsonl"

    def _flush(self) -> None:
        try:
            if self._file < 0:
                self._open_next()
            while self._pending:
                line = self._pending[0]
                done = os.write(self._file, line)
                self._size += done
                self._pending_bytes -= done
                self._unsynced = True
                if done < len(line):  # the disk is full; the rest of the line must follow first
                    self._pending[0] = line[done:]
                    continue
                self._pending.popleft()
                self.written += 1
            if self.blocked:
                self.blocked = False
                log.warning("the usage journal is being written again")
        except OSError as error:
            self._block(error)

    def _block(self, error: OSError) -> None:
        """Said once; tried again with the next record and each second."""
        if not self.blocked:
            self.blocked = True
            log.error("cannot write the usage journal %s: %s; records wait in memory", self.path, error.strerror)

    def _sync(self) -> None:
        try:
            os.fdatasync(self._file)
        except OSError as error:
            log.error("cannot sync the usage journal %s: %s", self.path, error.strerror)

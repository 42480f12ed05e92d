"""The usage journal: an append-only file of lines. A line is in the kernel before its request's last byte is sent, so
a killed router loses none; an fdatasync each second, off the loop, bounds what a power cut can take.

A full disk stops no request: lines wait in memory, up to a limit, and are written when there is room again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from pathlib import Path

log = logging.getLogger(__name__)

SEGMENT_BYTES = 64 * 1024 * 1024
PENDING_LIMIT_BYTES = 64 * 1024 * 1024
"""About 150,000 records; beyond it new lines are dropped and counted."""
SYNC_INTERVAL_S = 1.0


class Journal:
    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._unsynced = False
        self._blocked = False
        self.written = 0
        """Lines in the file since this process began."""
        self.lost = 0
        """Lines dropped because the disk stayed full for too long."""
        self._number = max((int(p.stem.partition("-")[2]) for p in directory.glob("usage-*.jsonl")), default=0)
        self._open_next()

    @property
    def path(self) -> Path:
        return self._directory / f"usage-{self._number:06d}.jsonl"

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
                full = self._file
                self._open_next()
                os.close(full)

    def close(self) -> None:
        self._flush()
        self._sync()
        os.close(self._file)
        if self._pending:
            log.error("%d usage records could not be written to %s", len(self._pending), self._directory)

    def _open_next(self) -> None:
        """A new segment per process and size: a line cut short by a crash then stays the last of its file."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        while True:
            self._number += 1
            try:
                self._file = os.open(self.path, flags, 0o600)
                break
            except FileExistsError:
                pass  # another worker of this directory was first
        self._size = 0

    def _flush(self) -> None:
        try:
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
            if self._blocked:
                self._blocked = False
                log.warning("the usage journal is being written again")
        except OSError as error:
            if not self._blocked:
                self._blocked = True
                log.error("cannot write the usage journal %s: %s; records wait in memory", self.path, error.strerror)

    def _sync(self) -> None:
        try:
            os.fdatasync(self._file)
        except OSError as error:
            log.error("cannot sync the usage journal %s: %s", self.path, error.strerror)

"""A free port for an engine: its former one if possible, so that a restart does not move it."""

from __future__ import annotations

import socket


class NoFreePort(OSError):  # noqa: N818 - reads as what it is where it is caught
    pass


class Ports:
    def __init__(self, host: str, first: int, last: int) -> None:
        self._host, self._first, self._last = host, first, last
        self._taken: dict[str, int] = {}

    def take(self, replica: str) -> int:
        """Raise NoFreePort when the range is used up."""
        former = self._taken.pop(replica, 0)
        others = set(self._taken.values())
        candidates = range(self._first, self._last + 1) if self._first else (0,)
        for port in [former, *candidates] if former else candidates:
            if port not in others and (free := self._try(port)):
                self._taken[replica] = free
                return free
        raise NoFreePort(f"no free port between {self._first} and {self._last} on {self._host}; widen the range")

    def keep(self, replica: str, port: int) -> None:
        """An adopted engine has one already."""
        self._taken[replica] = port

    def _try(self, port: int) -> int:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, port))
            except OSError:
                return 0
            return int(probe.getsockname()[1])

"""The listening sockets of a router: one, or one per worker on the same port.

Bound before anything else starts, so that a taken port is said at once and port 0 becomes a number. Workers share the
port by SO_REUSEPORT: the kernel spreads connections by a hash, which is even; with one shared socket the worker that
wakes first takes most (README, Decisions).
"""

from __future__ import annotations

import socket

from wire.settings import SettingsError


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Bound, not yet listening. `shared`: others of this user may bind the same port. Raises SettingsError."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --host or --port"
        ) from error
    listener.setblocking(False)
    return listener


ACCEPTS_PER_TURN = 8


def hands(listener: socket.socket) -> list[socket.socket]:
    """The listener several times over. uvloop accepts one connection per socket and turn of its loop, and with
    thousands of streams a turn takes tens of milliseconds: a crowd of clients would be let in at thirty a second."""
    return [listener, *(listener.dup() for _ in range(ACCEPTS_PER_TURN - 1))]


class SharedPort:
    """A port for several workers. The first socket is kept bound and never listens: it holds the number."""

    def __init__(self, host: str, port: int) -> None:
        # SO_REUSEPORT would let a second router of this user take part in the same port unasked.
        if port:
            listen(host, port).close()
        self._held = listen(host, port, shared=True)
        self._host = host
        self.port: int = self._held.getsockname()[1]

    def socket(self) -> socket.socket:
        return listen(self._host, self.port, shared=True)

    def close(self) -> None:
        self._held.close()

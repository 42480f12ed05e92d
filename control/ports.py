"""Free TCP ports on loopback. The public port is the one that was asked for, or there is an error with the remedy; for
everything inside, the next free one is as good."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from control.errors import Failed

LAST = 65535


def is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port in TIME_WAIT is free, a port somebody listens on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise Failed(
                f"cannot listen on {host}: {error.strerror}; name an address of this host with --host."
            ) from error
    return True


def public(host: str, port: int) -> int:
    """The port for clients. Raise Failed when somebody has it."""
    if port == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    if not is_free(host, port):
        other = next(inside(host, port + 1), 0)
        raise Failed(
            f"port {port} is taken by another program; use another with --port {other}, or stop that program "
            f"(`ss -ltnp 'sport = :{port}'` shows which it is)."
        )
    return port


def inside(host: str, start: int) -> Iterator[int]:
    """Free ports from `start` upwards, each once."""
    return (port for port in range(start, LAST + 1) if is_free(host, port))

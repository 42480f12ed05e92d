"""Half-open connections: a host that was unplugged, or cut off by a partition, sends no end. The kernel can find out.

Without this an unanswered write is repeated for a quarter of an hour, and a connection on which only the other side
has something to say stays open for ever.
"""

from __future__ import annotations

import socket

PROBES = 3


def notice_loss(raw: socket.socket, limit_s: float) -> None:
    """End the connection when the host at its other end has acknowledged nothing for about `limit_s`: neither data
    (also when it takes none, its buffers being full) nor, where nothing is sent, a probe. Of a listening socket: every
    connection that it accepts."""
    if raw.family not in (socket.AF_INET, socket.AF_INET6):
        return
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; elsewhere the system's own patience holds
        each_s = max(1, round(limit_s / (PROBES + 1)))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, each_s)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, each_s)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * limit_s))

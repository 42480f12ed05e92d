"""The round trip to an engine's host as the kernel measured it: exact however busy this process is, and at no cost to a
request, because a new connection has had its handshake."""

from __future__ import annotations

import socket
import struct

_TCP_INFO = getattr(socket, "TCP_INFO", None)
"""None where there is no such thing."""
_RTT_AT = 68
"""Of `tcpi_rtt`, microseconds, in Linux's struct tcp_info (include/uapi/linux/tcp.h)."""


def kernel_rtt_s(connected: socket.socket) -> float:
    """0 when the kernel does not say."""
    if _TCP_INFO is None:
        return 0.0
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _RTT_AT + 4)
    except OSError:
        return 0.0
    return 1e-6 * struct.unpack_from("I", info, _RTT_AT)[0] if len(info) == _RTT_AT + 4 else 0.0

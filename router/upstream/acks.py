"""One acknowledgement for two events of a stream instead of one for each.

An engine's connection carries nothing back while it streams, so Linux takes it for a one-way transfer and acknowledges
each small segment as soon as it is read: a packet per token, sent at the reader's cost. Told that data go both ways it
acknowledges every second one. It forgets that by itself where segments come more than 40 ms apart (a slow engine, or
one that waits for acknowledgements because it lacks TCP_NODELAY), and is then as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

_TCP_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
"""None where there is no such thing."""


def acknowledge_late(transport: asyncio.BaseTransport) -> None:
    raw = transport.get_extra_info("socket")
    if raw is not None and _TCP_QUICKACK is not None:
        with contextlib.suppress(OSError):  # no TCP, or closed meanwhile
            raw.setsockopt(socket.IPPROTO_TCP, _TCP_QUICKACK, 0)

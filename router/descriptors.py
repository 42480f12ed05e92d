"""File descriptors of this process: as many as the system allows, and never all of them for clients.

A client costs two: its connection and an engine's. Whoever takes the last one takes the journal's next segment and
the registry's next connection with it; so clients beyond their share are told, with a 503, while there is still one
left to tell them on.
"""

from __future__ import annotations

import errno
import logging
import resource

log = logging.getLogger(__name__)

RESERVE = 256
"""For listeners, journal, registry, streams to agents, idle engine connections; a quarter where there are few."""
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""This host has no more of something: no fault of whoever was to be reached."""


def raise_limit() -> int:
    """To what this user may have; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 30


def clients(wanted: int, *, descriptors: int) -> int:
    """Connections that clients may have, of `wanted`, so that each can be given an engine's."""
    share = max(1, (descriptors - min(RESERVE, descriptors // 4)) // 2)
    if share < wanted:
        log.info(
            "%d file descriptors are enough for %d clients at once, not for connections_limit = %d: raise LimitNOFILE",
            descriptors,
            share,
            wanted,
        )
    return min(share, wanted)

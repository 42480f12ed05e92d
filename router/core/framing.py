"""The chunks of HTTP/1.1 by hand: how a small one begins, known by its size.

Engines send each token event as a chunk of its own, and clients get it as one. To take it out of its framing and to put
it into another, a table is enough; a parser costs more than all else that is done with the event.
"""

from __future__ import annotations

LIMIT_BYTES = 4096
"""Of a chunk with its framing. A larger one goes through the parser: it costs it little."""


LINES = tuple(b"%x\r\n" % size for size in range(LIMIT_BYTES))
"""By the size of the content."""


def _of_read(size: int) -> bytes:
    """How a read of this size begins that is one whole chunk with content and no extension, as uvicorn writes it."""
    for digits in (1, 2, 3):
        content = size - digits - 4
        if content > 0 and len(line := LINES[content]) == digits + 2:
            return line
    return b"no chunk has this size"


LINES_OF_READS = tuple(map(_of_read, range(LIMIT_BYTES)))

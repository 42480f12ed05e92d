"""One HTTP exchange over a plain socket, keeping every byte and the size of every read: what a relay really sees."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httptools

READ_BYTES = 65536
SILENCE_S = 20.0


@dataclass
class Exchange:
    """What was sent and what came back so far."""

    endpoint: str
    body: str
    headers: dict[str, str]
    wire: bytearray = field(default_factory=bytearray)
    reads: list[int] = field(default_factory=list)
    ending: str = ""
    complete: bool = False
    status: int = 0

    def on_message_complete(self) -> None:
        self.complete = True

    def events(self) -> int:
        return self.wire.count(b"\n\ndata: ") + self.wire.count(b"\r\ndata: ")


def exchange(
    port: int,
    endpoint: str,
    body: Mapping[str, Any] | str,
    *,
    headers: Mapping[str, str] | None = None,
    silence_s: float = SILENCE_S,
    watch: Callable[[Exchange], None] = lambda so_far: None,
) -> Exchange:
    """Sends one POST and reads to its end, however it ends; `watch` sees the exchange after every read."""
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    made = Exchange(endpoint, text, dict(headers or {}))
    parser = httptools.HttpResponseParser(made)
    with socket.create_connection(("127.0.0.1", port), timeout=silence_s) as connection:
        connection.sendall(_request(port, made))
        while not made.complete and not made.ending:
            _read(connection, made, parser)
            watch(made)
    made.ending = made.ending or "complete"
    made.status = parser.get_status_code() if made.wire else 0
    return made


def _read(connection: socket.socket, made: Exchange, parser: Any) -> None:
    try:
        piece = connection.recv(READ_BYTES)
    except TimeoutError:
        made.ending = "silent"
        return
    except ConnectionResetError:
        made.ending = "reset"
        return
    if not piece:
        made.ending = "eof"
        return
    made.wire += piece
    made.reads.append(len(piece))
    parser.feed_data(piece)


def _request(port: int, made: Exchange) -> bytes:
    content = made.body.encode()
    lines = [
        f"POST {made.endpoint} HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        "content-type: application/json",
        f"content-length: {len(content)}",
        *(f"{name}: {value}" for name, value in made.headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + content

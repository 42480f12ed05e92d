"""The slow way to a client, through plain ASGI, keeps the same contract as the short one when the client leaves."""

from __future__ import annotations

import asyncio
from typing import Any

from router.downstream.stream import AsgiStream

SCOPE: dict[str, Any] = {"headers": []}


class Server:
    """An ASGI server's two callables, and a client that leaves when told."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.sent: list[bytes] = []
        self._asked = False

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"hello", "more_body": False}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message.get("body", b""))

    def stream(self) -> AsgiStream:
        return AsgiStream(SCOPE, self.receive, self.send)


async def test_a_client_that_leaves_cancels_the_handler() -> None:
    server = Server()
    stream = server.stream()
    ended: list[bool] = []

    async def handle() -> None:
        await stream.read_body(100)
        server.leaves.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(stream.gone)

    await stream.serve(handle)
    assert [True] == ended


async def test_where_somebody_wants_to_be_told_of_it_the_handler_goes_on() -> None:
    server = Server()
    stream = server.stream()
    told = asyncio.Event()
    went_on: list[bool] = []

    async def handle() -> None:
        await stream.read_body(100)
        stream.on_lost = told.set
        server.leaves.set()
        await told.wait()
        await asyncio.sleep(0)
        went_on.append(stream.gone)

    await stream.serve(handle)
    assert [True] == went_on


async def test_an_answer_that_is_cut_ends_with_its_last_bytes_and_the_handler_goes_on_whatever_the_client_does() -> (
    None
):
    server = Server()
    stream = server.stream()
    went_on: list[bool] = []

    async def handle() -> None:
        await stream.read_body(100)
        stream.start(200, [])
        stream.write(b"one")
        stream.cut(b"two")
        server.leaves.set()
        await asyncio.sleep(0.01)
        went_on.append(stream.gone)

    await stream.serve(handle)
    assert ([b"", b"one", b"two"], [True]) == (server.sent, went_on)

"""A crowd of new clients is let in by the handful, however long a turn of the loop takes."""

from __future__ import annotations

import asyncio
import socket

import uvloop

from router.listen import ACCEPTS_PER_TURN, hands, listen


async def turns_to_let_in(clients: int) -> int:
    loop = asyncio.get_running_loop()
    listener = listen("127.0.0.1", 0)
    let_in: list[object] = []

    class Client(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            let_in.append(transport)

    servers = [await loop.create_server(Client, sock=hand, backlog=64) for hand in hands(listener)]
    outside = [socket.create_connection(listener.getsockname()) for _ in range(clients)]
    turns = 0
    while len(let_in) < clients:
        await asyncio.sleep(0)
        turns += 1
    for end in (*outside, *servers):
        end.close()
    return turns


def test_several_clients_are_let_in_in_one_turn_of_the_loop() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(turns_to_let_in(4 * ACCEPTS_PER_TURN)) < 2 * ACCEPTS_PER_TURN

"""`switchyard why`: what it tells of a request that met nearly everything."""

from __future__ import annotations

import asyncio

from tests.router.harness import ANSWER, DONE, Engine, Exchange, plays, running_router, until
from wire.records import ModelState, Node

SHOWN = b"".join([*ANSWER[:3], DONE])


class Troubles:
    """Of all engines together: the first attempt fails, the second breaks in the middle, the third plays."""

    def __init__(self) -> None:
        self.attempts = 0

    async def __call__(self, exchange: Exchange) -> None:
        self.attempts += 1
        if self.attempts == 1:
            await exchange.answer(500, b'{"error": {"message": "CUDA error: an illegal memory access"}}')
        elif self.attempts == 2:
            await exchange.stream(ANSWER[:2], end=False)
            exchange.cut()
        else:
            await plays(exchange)


async def test_why_reads_like_a_story_for_a_request_that_was_held_retried_and_resumed() -> None:
    troubles = Troubles()
    async with running_router() as router, Engine(troubles) as one, Engine(troubles) as other:
        for number, engine in enumerate((one, other), 1):
            await router.put(Node(node=f"gpu-{number}", region="local", address="127.0.0.1:1"))
            name, node = f"gpu-{number}.tiny.0", f"gpu-{number}"
            await router.add_engine(engine, name=name, node=node, state=ModelState.LOADING)
        async with asyncio.TaskGroup() as clients:
            asked = clients.create_task(router.chat(temperature=0, headers={"x-request-id": "req-0193f2"}))
            await until(lambda: router.app.news.waiting == 1)
            await router.add_engine(one, name="gpu-1.tiny.0", node="gpu-1")
            await until(lambda: troubles.attempts == 1)
            await router.add_engine(other, name="gpu-2.tiny.0", node="gpu-2")
        assert SHOWN == asked.result().content
        story = (await router.client.get("/admin/why/req-0193f2")).text
        told = [
            "req-0193f2 arrived: chat for tiny",
            "hold gpu-",
            "is loading and to be waited for",
            "first attempt on gpu-1.tiny.0, generation 1, the best by expected_time",
            "gpu-1.tiny.0: ",
            "engine_error after 0 events: CUDA error: an illegal memory access",
            "hold gpu-2.tiny.0",
            "left out, tried already",
            "retry on gpu-2.tiny.0",
            "first token after",
            "engine_broke after 2 events",
            "resumed on gpu-1.tiny.0",
            "ok after 4 events",
            "ended ok, status 200",
            "held ",
            "5 prompt tokens, 2 of them cached, 3 output tokens (by engine)",
        ]
        at = 0
        for words in told:
            assert words in story[at:], f"{words!r} does not come in its turn"
            at = story.index(words, at) + len(words)

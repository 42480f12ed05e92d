"""The stand-ins behave as what they stand in for."""

from __future__ import annotations

import asyncio

from router.downstream.light import Flow, Queue, Signal


async def test_waiters_go_on_when_a_signal_is_set_and_not_before() -> None:
    signal = Signal()
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(signal.wait()) for _ in range(2)]
        await asyncio.sleep(0)
        assert [False, False] == [task.done() for task in waiting]
        signal.set()
    await signal.wait()


async def test_a_waiter_that_gave_up_hinders_nobody() -> None:
    signal = Signal()
    async with asyncio.TaskGroup() as group:
        gone = group.create_task(signal.wait())
        group.create_task(signal.wait())
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        signal.set()
    assert gone.cancelled()


async def test_a_signal_that_was_cleared_is_waited_for_again() -> None:
    signal = Signal()
    signal.set()
    signal.clear()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(signal.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        signal.set()


def test_a_queue_has_two_ends() -> None:
    queue = Queue([2, 3])
    queue.appendleft(1)
    assert (1, [2, 3]) == (queue.popleft(), queue)


async def test_who_drains_waits_while_writing_is_paused() -> None:
    flow = Flow(asyncio.Transport())
    await flow.drain()
    flow.pause_writing()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(flow.drain())
        await asyncio.sleep(0)
        assert not waiting.done()
        flow.resume_writing()

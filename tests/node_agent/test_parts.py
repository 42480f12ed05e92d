"""The small parts of the shell: memory, ports, notices, the reporter."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from node_agent.core.events import Hold
from node_agent.core.report import Load, SentBook
from node_agent.engines.ports import NoFreePort, Ports
from node_agent.memory import Memory
from node_agent.notice import Notice
from node_agent.reports import Reporter
from wire.records import ModelState


def test_generations_and_learned_times_survive_a_restart(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "memory.json")
    assert memory.started("a", 7)
    memory.took("load:m", 12.0)
    again = Memory(tmp_path / "memory.json")
    assert (7, 0) == (again.generation("a"), again.generation("b"))
    assert 12 == again.estimate.remaining_s("load:m", prior_s=1)


def test_what_was_drained_survives_a_restart(tmp_path: Path) -> None:
    hold = Hold(30.0, stop=True)
    assert Memory(tmp_path / "memory.json").drained({"a": hold}, draining=True)
    again = Memory(tmp_path / "memory.json")
    assert (True, {"a": hold}) == (again.draining, again.held)
    assert again.started("a", 8)
    assert {"a": hold} == Memory(tmp_path / "memory.json").held


def test_a_memory_that_cannot_be_read_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "memory.json").write_bytes(b"\x00torn")
    assert 0 == Memory(tmp_path / "memory.json").generation("a")


def test_a_memory_that_cannot_be_written_says_so_and_goes_on(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "no" / "such" / "memory.json")
    assert not memory.started("a", 7)
    assert 7 == memory.generation("a")


def test_a_replica_keeps_its_port_and_two_never_share_one() -> None:
    ports = Ports("127.0.0.1", 0, 0)
    first, second = ports.take("a"), ports.take("b")
    assert first != second
    assert first == ports.take("a")


def test_a_port_that_somebody_else_took_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NoFreePort, match="widen the range"):
            Ports("127.0.0.1", port, port).take("a")


def test_an_adopted_engines_port_is_not_given_away() -> None:
    free = Ports("127.0.0.1", 0, 0).take("a")
    ports = Ports("127.0.0.1", free, free)
    ports.keep("a", free)
    with pytest.raises(NoFreePort):
        ports.take("b")


async def test_a_notice_wakes_everyone_who_waits_and_keeps_nothing() -> None:
    notice, woken = Notice(), 0

    async def wait() -> None:
        nonlocal woken
        await notice.wait()
        woken += 1

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(wait())
        await asyncio.sleep(0)
        notice.tell()
    assert 3 == woken
    await notice.wait(limit_s=0.01)


class Figures:
    """What a reporter reads, under a clock of its own."""

    def __init__(self) -> None:
        self.now, self.running, self.reads = 100.0, 0, 0
        self.changed = Notice()

    def loads(self, now: float) -> tuple[Load, ...]:
        self.reads += 1
        return (Load(replica="a", state=ModelState.READY, running=self.running, scraped_at=now),)


async def test_a_change_is_reported_and_reports_are_numbered_without_a_gap() -> None:
    figures = Figures()
    loop = asyncio.get_running_loop()
    reporter = Reporter(figures.loads, figures.changed, clock=loop.time, epoch=1, book=SentBook())
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        first = await reporter.newest()
        figures.running = 5
        figures.changed.tell()
        second = await reporter.after(first.sequence)
        third = await reporter.after(second.sequence)
        running.cancel()
    assert [1, 2, 3] == [report.sequence for report in (first, second, third)]
    assert 5 == second.loads[0].running
    assert second.at - first.at >= 0.05
    assert third.at - second.at >= 0.25, "nothing changed, so it is only a sign of life"

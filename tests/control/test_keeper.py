import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.errors import Failed
from control.house import House
from control.rundir import taken
from control.screen import Screen
from control.supervise import Child, told

OBEDIENT = (
    "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(60)"
)
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
LIMIT_S = 20.0


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def child(tmp_path: Path, lock: int, code: str, *, grace_s: float = 0.2) -> Child:
    return Child(
        "child", [sys.executable, "-c", code], log=tmp_path / "child.log", env=os.environ, grace_s=grace_s, lock=lock
    )


async def up(child: Child) -> None:
    async with asyncio.timeout(LIMIT_S):
        while "up" not in child.last_lines():
            assert child.exit_code() is None, child.last_lines()
            await asyncio.sleep(0.01)


async def test_a_child_that_is_asked_to_end_ends_by_itself(tmp_path: Path, lock: int) -> None:
    obedient = child(tmp_path, lock, OBEDIENT)
    obedient.start()
    await up(obedient)
    assert await obedient.stop(limit_s=LIMIT_S, now=asyncio.Event())
    assert 7 == obedient.exit_code()


async def test_a_child_that_does_not_listen_is_ended(tmp_path: Path, lock: int) -> None:
    stubborn = child(tmp_path, lock, STUBBORN)
    stubborn.start()
    await up(stubborn)
    assert not await stubborn.stop(limit_s=0.1, now=asyncio.Event())
    assert "signal 9" == told(stubborn.exit_code() or 0)


async def test_in_a_hurry_a_child_is_ended_at_once(tmp_path: Path, lock: int) -> None:
    stubborn, now = child(tmp_path, lock, STUBBORN), asyncio.Event()
    stubborn.start()
    await up(stubborn)
    now.set()
    async with asyncio.timeout(LIMIT_S):
        assert not await stubborn.stop(limit_s=3600, now=now)


@pytest.mark.parametrize("code", [OBEDIENT, STUBBORN], ids=["obedient", "stubborn"])
async def test_a_child_does_not_outlive_the_pipe_to_its_parent(tmp_path: Path, lock: int, code: str) -> None:
    orphan = child(tmp_path, lock, code)
    orphan.start()
    await up(orphan)
    orphan.close()
    async with asyncio.timeout(LIMIT_S):
        await orphan.ended()


async def test_the_lock_is_held_until_the_last_keeper_has_ended(tmp_path: Path) -> None:
    ours, other = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert taken(ours)
    obedient = child(tmp_path, ours, OBEDIENT)
    obedient.start()
    await up(obedient)
    os.close(ours)
    assert not taken(other)
    await obedient.stop(limit_s=LIMIT_S, now=asyncio.Event())
    assert taken(other)
    os.close(other)


async def test_a_command_that_cannot_be_started_says_so_in_its_log(tmp_path: Path, lock: int) -> None:
    missing = Child("x", ["/no/such/program"], log=tmp_path / "x.log", env={}, grace_s=1, lock=lock)
    missing.start()
    async with asyncio.timeout(LIMIT_S):
        assert 127 == await missing.ended()
    assert ["cannot start /no/such/program: No such file or directory"] == missing.last_lines()


async def test_the_log_of_the_run_before_is_kept_beside_the_new_one(tmp_path: Path, lock: int) -> None:
    (tmp_path / "child.log").write_text("before\n")
    quick = child(tmp_path, lock, "print('now')")
    quick.start()
    async with asyncio.timeout(LIMIT_S):
        await quick.ended()
    assert ["now"] == quick.last_lines()
    assert "before\n" == (tmp_path / "child.log.before").read_text()


class Lines:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def household(lines: Lines) -> House:
    return House(Screen(lines, {}, clock=lambda: 0.0))  # type: ignore[arg-type]


async def test_a_process_that_ends_while_starting_is_told_with_the_end_of_its_log(tmp_path: Path, lock: int) -> None:
    home = household(Lines())
    home.start([child(tmp_path, lock, "import sys; print('no such port'); sys.exit(3)")])
    with pytest.raises(Failed, match=r"(?s)exit code 3.*child\.log.*no such port"):
        async with asyncio.timeout(LIMIT_S):
            await home.watch_start()


async def test_a_process_that_ends_later_is_started_again(tmp_path: Path, lock: int) -> None:
    lines, restarted = Lines(), asyncio.Event()
    home, steady = household(lines), child(tmp_path, lock, OBEDIENT)
    home.start([steady])
    await up(steady)

    async def on_restart(_: Child) -> None:
        restarted.set()

    async with asyncio.TaskGroup() as group:
        keeping = group.create_task(home.keep(on_restart))
        os.kill(steady.pid, signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            await restarted.wait()
        keeping.cancel()
    assert "child ended (exit code 7); starting it again" in lines.text
    assert 2 == steady.starts
    await home.stop(limit_s=LIMIT_S, now=asyncio.Event())
    assert not steady.runs()


async def test_stages_end_in_the_reverse_order_of_their_starts(tmp_path: Path, lock: int) -> None:
    lines = Lines()
    home = household(lines)
    for name in ("first", "second"):
        one = Child(
            name, [sys.executable, "-c", OBEDIENT], log=tmp_path / f"{name}.log", env=os.environ, grace_s=1, lock=lock
        )
        home.start([one])
        await up(one)
    await home.stop(limit_s=LIMIT_S, now=asyncio.Event())
    ended = [line.split()[0] for line in lines.text.splitlines() if "stopped" in line]
    assert ["second", "first"] == ended

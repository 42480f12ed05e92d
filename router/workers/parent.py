"""`--workers N`: one process that starts N router processes on one port, watches them, and joins what they tell.

It serves no request. A worker that ends is started again, a little later each time; SIGHUP replaces them one by one;
SIGTERM or SIGINT has all leave in order, a second one at once. Workers notice when this process dies (member.py).

A listening socket belongs to a slot and is kept open here: over a replacement the old and the new worker accept from
the same one, so no connection in its queue is lost. After a crash it is closed, so that new connections go to the
others instead of waiting in a queue that nobody reads.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from router.core.difference import together
from router.listen import SharedPort
from router.workers.channel import Ask, Channel, How, Leave, Ready, Told
from router.workers.member import Post
from router.workers.tally import Figures, lasting, total

log = logging.getLogger(__name__)

RESTART_DELAYS_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_S = 60.0
"""A worker that ran this long has the earlier ends of its slot forgiven."""
READY_LIMIT_S = 60.0
"""A successor that does not serve by then is ended, and the old worker stays."""
ANSWER_LIMIT_S = 1.0
END_LIMIT_S = 2.0
"""Between the end of a worker's channel and the end of its process."""
NOW_LIMIT_S = 10.0
"""For a worker to leave at once; then it is killed."""
WORKER_FLAG = "--as-worker"


class Worker:
    """One process."""

    def __init__(self, slot: Slot) -> None:
        self.name = slot.name
        self.started = asyncio.get_running_loop().time()
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.told = Figures()
        """Its figures when last asked."""
        self.answers: dict[int, asyncio.Future[Told]] = {}
        self._end, theirs = socket.socketpair()
        post = Post(self.name, slot.listener.fileno(), theirs.fileno())
        self.process = subprocess.Popen(
            [*slot.command, WORKER_FLAG, post.write()],
            stdin=subprocess.DEVNULL,
            pass_fds=(slot.listener.fileno(), theirs.fileno()),
            start_new_session=True,  # Ctrl-C is the parent's alone: it tells the workers how to leave
        )
        theirs.close()
        self._channel: Channel | None = None

    async def open(self) -> Channel:
        self._channel = await Channel.over(self._end)
        return self._channel

    def leave(self, how: How) -> None:
        if self._channel is not None:
            self._channel.send(Leave(how))

    def send(self, message: Ask | Told) -> None:
        if self._channel is not None:
            self._channel.send(message)

    async def reap(self) -> int:
        """The exit code, once the channel has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(END_LIMIT_S):
                while self.process.poll() is None:
                    await asyncio.sleep(0.01)
        if self.process.poll() is None:
            self.process.kill()
        if self._channel is not None:
            self._channel.close()
        return self.process.wait()


class Slot:
    """One of the N places, with its listening socket. Its process changes."""

    def __init__(self, number: int, *, port: SharedPort, command: Sequence[str]) -> None:
        self.name = f"w{number}"
        self.command = command
        self.current: Worker | None = None
        self.successor: Worker | None = None
        """Being started to replace the current one."""
        self.ends: list[float] = []
        self._port = port
        self.listener = port.socket()

    def renew(self) -> None:
        """Leave the queue of a dead worker to the kernel, which resets it, and bind anew; it listens when served."""
        self.listener.close()
        self.listener = self._port.socket()

    def delay_s(self, now: float) -> float:
        self.ends = [*(at for at in self.ends if now - at < STEADY_S), now]
        return RESTART_DELAYS_S[min(len(self.ends), len(RESTART_DELAYS_S)) - 1]


class Parent:
    def __init__(self, count: int, *, port: SharedPort, command: Sequence[str]) -> None:
        self._port = port
        self._slots = [Slot(number, port=port, command=command) for number in range(count)]
        self._workers: list[Worker] = []
        """All that run, those that leave included."""
        self._ended = Figures()
        self._restarts = 0
        self._stopping = asyncio.Event()
        self._signals = 0
        self._replace = asyncio.Event()
        self._exit_code = 0
        self._served = False
        """A worker has been ready. Before that, one that ends is the end of all: its settings are at fault."""
        self._number = 0

    async def run(self) -> int:
        """Until all have left; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_leave)
        loop.add_signal_handler(signal.SIGHUP, self._asked_to_replace)
        async with asyncio.TaskGroup() as group:
            for slot in self._slots:
                self._start(slot, group)
            replacing = group.create_task(self._replace_all(group))
            await self._stopping.wait()
            replacing.cancel()
            while self._workers:
                await asyncio.gather(*(worker.ended.wait() for worker in self._workers))
        return self._exit_code

    def _start(self, slot: Slot, group: asyncio.TaskGroup) -> Worker:
        worker = Worker(slot)
        self._workers.append(worker)
        if slot.current is None and slot.successor is None:
            slot.current = worker
        log.info("worker %s is process %d", slot.name, worker.process.pid)
        group.create_task(self._keep(slot, worker, group))
        return worker

    async def _keep(self, slot: Slot, worker: Worker, group: asyncio.TaskGroup) -> None:
        """Follow one process to its end."""
        channel = await worker.open()
        if self._stopping.is_set():
            worker.leave("now")
        while (message := await channel.receive()) is not None:
            match message:
                case Ready():
                    worker.ready.set()
                    self._served = True
                case Ask():
                    group.create_task(self._answer(worker, message))
                case Told():
                    if (future := worker.answers.get(message.number)) and not future.done():
                        future.set_result(message)
                case Leave():
                    raise AssertionError("a worker does not tell its parent to leave")
        code = await worker.reap()
        self._workers.remove(worker)
        self._ended = total((self._ended, lasting(worker.told)))
        worker.ended.set()
        if slot.current is worker:
            slot.current = None
            if slot.successor is None:  # else that one takes over
                await self._again(slot, code, group)

    async def _again(self, slot: Slot, code: int, group: asyncio.TaskGroup) -> None:
        if self._stopping.is_set():
            return
        if not self._served:
            self._exit_code = code or 1
            self._leave("now")
            return
        slot.renew()
        self._restarts += 1
        delay_s = slot.delay_s(asyncio.get_running_loop().time())
        log.error("worker %s ended with %s; starting it again in %.1f s", slot.name, told(code), delay_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()
        if not self._stopping.is_set():
            self._start(slot, group)

    async def _replace_all(self, group: asyncio.TaskGroup) -> None:
        """At each wish one slot after the other: a successor first, then the old worker retires."""
        while True:
            await self._replace.wait()
            self._replace.clear()
            log.info("replacing %d workers", len(self._slots))
            for slot in self._slots:
                if slot.current is not None and not await self._replaced(slot, group):
                    log.error("the successor of %s does not serve; the workers that are left stay", slot.name)
                    break
            else:
                log.info("all workers are replaced")

    async def _replaced(self, slot: Slot, group: asyncio.TaskGroup) -> bool:
        worker = slot.successor = self._start(slot, group)  # `current` is still the old one
        ready = group.create_task(worker.ready.wait())
        ended = group.create_task(worker.ended.wait())
        await asyncio.wait((ready, ended), timeout=READY_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        ended.cancel()
        slot.successor = None
        if worker.ready.is_set() and not worker.ended.is_set():
            old, slot.current = slot.current, worker
            if old is not None:
                old.leave("retire")
            return True
        worker.leave("now")
        if slot.current is None:  # the old one ended meanwhile
            group.create_task(self._again(slot, 1, group))
        return False

    async def _answer(self, worker: Worker, ask: Ask) -> None:
        """Ask all for one of them. Who does not answer counts with what it last told."""
        self._number += 1
        question = msgspec.structs.replace(ask, number=self._number)
        asked = [one for one in self._workers if one.ready.is_set()]
        answers = await asyncio.gather(*(self._ask(one, question) for one in asked))
        figures: dict[str, Figures] = {}
        ended = [self._ended]
        for one, answer in zip(asked, answers, strict=True):
            if answer is None:
                ended.append(lasting(one.told))
            elif answer.workers:
                one.told = answer.workers[one.name]
                figures[one.name if one.name not in figures else f"{one.name}-{one.process.pid}"] = one.told
        silent = sum(answer is None for answer in answers)
        story = next((answer.story for answer in answers if answer and answer.story), None)
        replayed = [answer.difference for answer in answers if answer and answer.difference]
        worker.send(
            Told(
                number=ask.number,
                workers=figures,
                ended=total(ended),
                silent=silent,
                restarts=self._restarts,
                story=story,
                difference=together(replayed) if replayed else None,
            )
        )

    async def _ask(self, worker: Worker, question: Ask) -> Told | None:
        future: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        worker.answers[question.number] = future
        worker.send(question)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_LIMIT_S):
                    return await future
            return None
        finally:
            del worker.answers[question.number]

    def _asked_to_leave(self) -> None:
        self._signals += 1
        log.info("leaving" if self._signals == 1 else "leaving at once")
        self._leave("leave" if self._signals == 1 else "now")

    def _asked_to_replace(self) -> None:
        if terminal_is_gone():
            self._asked_to_leave()
        else:
            self._replace.set()

    def _leave(self, how: How) -> None:
        """Our copies of the sockets go first: a port that no worker serves must refuse, not queue."""
        self._stopping.set()
        for slot in self._slots:
            slot.listener.close()
        self._port.close()
        for worker in self._workers:
            worker.leave(how)
        if how == "now":
            asyncio.get_running_loop().call_later(NOW_LIMIT_S, self._kill)

    def _kill(self) -> None:
        for worker in self._workers:
            log.error("worker %s does not leave; killing it", worker.name)
            worker.process.kill()


def terminal_is_gone() -> bool:
    """SIGHUP has two meanings: an operator's wish, and the end of the terminal that this process was started from."""
    try:
        os.tcgetpgrp(0)
    except OSError as error:
        return error.errno == errno.EIO  # where input never was a terminal it is ENOTTY
    return False


def told(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def own_command() -> list[str]:
    """This process's own command line, to be started again as a worker."""
    return [sys.executable, *sys.orig_argv[1:]]

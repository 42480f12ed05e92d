"""The engine of one replica as a running thing: started or adopted, watched to its end, drained or killed.

Its end is noticed through a pidfd, which works for children and for the keepers of a former agent alike, costs nothing
while nothing happens and cannot confuse two processes. Linux only, as GPU hosts are.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable

from node_agent.engines import process
from node_agent.engines.base import Launch
from node_agent.engines.process import EngineState, KeeperOptions, StateDir


class RunningEngine:
    def __init__(self, directory: StateDir, replica: str, on_exit: Callable[[int, str], None]) -> None:
        """`on_exit(generation, reason)` is called once per engine, when nothing of it is left."""
        self._directory, self._replica, self._on_exit = directory, replica, on_exit
        self._warden: subprocess.Popen[bytes] | None = None
        self._generation = 0
        self._fd = -1

    def start(self, state: EngineState, launch: Launch, options: KeeperOptions) -> None:
        """Raise OSError when not even the keeper can be started."""
        self._generation = state.generation
        self._warden = self._directory.start(state, launch, options)
        self._watch(self._warden.pid)

    def adopt(self, state: EngineState) -> None:
        self._generation = state.generation
        self._warden = None
        self._watch(process.watched_pid(state))

    def state(self) -> EngineState | None:
        """What the keeper says, None until it has said anything about this engine."""
        state = self._directory.read(self._replica)
        return state if state is not None and state.generation == self._generation else None

    def drain(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGINT)

    def let_go(self) -> None:
        """Stop watching, leave the engine as it is."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _end(self, number: signal.Signals) -> None:
        state = self.state()
        if state is not None and number is signal.SIGTERM:
            process.drain(state)
        elif state is not None:
            process.kill(state)
        elif self._warden is not None and self._warden.poll() is None:
            # Too early for a state file. The warden passes it on, or dies of it with nothing started.
            self._warden.send_signal(number)

    def _watch(self, pid: int) -> None:
        self.let_go()
        try:
            self._fd = os.pidfd_open(pid)
        except OSError:
            # Gone already, before we could look.
            asyncio.get_running_loop().call_soon(self._ended)
            return
        asyncio.get_running_loop().add_reader(self._fd, self._ended)

    def _ended(self) -> None:
        self.let_go()
        if self._warden is not None:
            self._warden.poll()
        state = self.state()
        if state is not None:
            if others := process.watched_pid(state):
                self._watch(others)
                return
            process.kill_group(state)
        self._on_exit(self._generation, state.why_it_ended if state else "its keeper could not start it (keeper.log)")

"""Get real vLLM ready before the fleet starts: its environment, and a tiny model where no other was named.

Both are made once, by programs of the node agent that are run as commands; their last line of output is progress.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from control.core import layout
from control.core.layout import Vllm
from control.errors import Failed
from control.up_settings import UpSettings

ENGINES = Path(__file__).parent.parent / "node_agent" / "engines"
POLL_S = 0.2


def wish(settings: UpSettings, root: Path) -> Vllm:
    directory = Path(settings.vllm_dir).absolute()
    name = Path(settings.model).name or layout.TINY_MODEL
    path = settings.model or str(root / "models" / layout.TINY_MODEL)
    gpu = shutil.which("nvidia-smi") is not None and _gpu_answers()
    return Vllm(directory=directory, gpu=gpu, model=name, path=path, built_here=not settings.model)


def steps(vllm: Vllm, *, logs: Path, env: Mapping[str, str]) -> list[Step]:
    """Both do nothing where their work is done already. The model is built with vLLM's Python: only there is torch."""
    build = "--gpu" if vllm.gpu else "--cpu"
    install = [sys.executable, "-P", "-m", "node_agent.engines.install", "--dir", str(vllm.directory), build]
    found = [Step("vllm", install, logs / "vllm-install.log", env, "vLLM could not be installed")]
    if vllm.built_here and not Path(vllm.path).is_dir():
        tiny = [vllm.python, str(ENGINES / "tiny_model.py"), vllm.path]
        found.append(Step("tiny model", tiny, logs / "tiny-model.log", env, "the tiny model could not be built"))
    return found


def _gpu_answers() -> bool:
    """The driver's files alone are no GPU."""
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30, check=False).returncode == 0


class Step(NamedTuple):
    name: str
    command: Sequence[str]
    log: Path
    env: Mapping[str, str]
    failed: str

    async def run(self, told: Callable[[str], None]) -> None:
        """`told` hears the last line of output now and then. Raise Failed."""
        process = self._start()
        try:
            while process.poll() is None:
                await asyncio.sleep(POLL_S)
                told(_last_line(self.log))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        if process.returncode != 0:
            raise Failed(f"{self.failed}: {_last_line(self.log) or 'no reason given'} (its log is {self.log})")

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as out:
            return subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(self.env),
                start_new_session=True,
            )


def _last_line(log: Path) -> str:
    lines = log.read_bytes()[-2000:].decode(errors="replace").replace("\r", "\n").split("\n")
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return line.removeprefix("engine environment: ")

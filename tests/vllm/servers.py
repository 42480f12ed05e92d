"""Real vLLM servers for tests: a tiny model built once, servers in process groups of their own, stopped by group.

A guard process stands between the test run and each server: it ends the server's whole group when the run goes away,
also by kill -9, because a killed API server leaves its engine core behind. Nothing here knows the router.
Flags and why: tests/vllm/README.md.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(os.environ.get("SWITCHYARD_TEST_VLLM", ROOT / ".venv-vllm"))
BUILDER = ROOT / "node_agent" / "engines" / "tiny_model.py"
REMEDY = "no engine environment; make one with `python -m node_agent.engines.install`"
START_LIMIT_S = 180.0

ENV = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}
COMMON = (
    "--served-model-name=tiny",
    "--host=127.0.0.1",
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=2048",
    "--kv-cache-memory-bytes=64M",
    "--block-size=32",
    "--enable-request-id-headers",
    "--enable-server-load-tracking",
    "--shutdown-timeout=30",
)
GENERATE = (
    "--max-num-seqs=16",
    "--enable-scale-out",
    "--enable-prompt-tokens-details",
    "--enable-lora",
    "--max-lora-rank=8",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    "--tool-strict-level=parameter",
)
POOLING = ("--runner=pooling", "--convert=embed")

GUARD = """
import os, signal, subprocess, sys, threading
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=sys.stderr)
print(child.pid, flush=True)
def watch():
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
code = child.wait()
print(code, flush=True)
sys.stdin.buffer.read()
"""


def available() -> bool:
    return (ENVIRONMENT / "bin" / "vllm").exists()


def tiny_model(adapter: bool = False) -> Path:
    """The model's directory (or the adapter's), built when the builder has changed or was never run."""
    version = hashlib.sha256(BUILDER.read_bytes()).hexdigest()[:12]
    folder = ROOT / ".switchyard" / "models"
    model, lora = folder / f"tiny-{version}", folder / f"tiny-lora-{version}"
    if not (model.exists() and lora.exists()):
        command = [str(ENVIRONMENT / "bin" / "python"), str(BUILDER), str(model), "--lora", str(lora)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | ENV)
    return lora if adapter else model


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class VllmServer:
    """One server: `start` returns at once, `wait_ready` when it serves, `stop` ends the whole group."""

    flags: Sequence[str] = GENERATE
    port: int = field(default_factory=free_port)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="switchyard-vllm-")))
    guard: subprocess.Popen[str] | None = None
    pid: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def start(self) -> VllmServer:
        vllm = str(ENVIRONMENT / "bin" / "vllm")
        command = [vllm, "serve", str(tiny_model()), *COMMON, f"--port={self.port}", *self.flags]
        with self.log.open("wb") as log:
            self.guard = subprocess.Popen(
                [sys.executable, "-c", GUARD, *command],
                env=os.environ | ENV,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self.guard.stdout is not None
        self.pid = int(self.guard.stdout.readline())
        return self

    def wait_ready(self) -> VllmServer:
        until = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until:
            if not self.alive():
                break
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.25)
        raise RuntimeError(f"vLLM did not become ready:\n{self.tail()}")

    def alive(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    def core_pid(self) -> int:
        """The engine core: the child process of the API server that holds the model."""
        for child in _children(self.pid):
            if b"EngineCore" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
        raise LookupError(f"no engine core under {self.pid}")

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        os.kill(pid, number)

    def kill_group(self) -> None:
        """What a lost node looks like: every process of the server at once."""
        if self.guard is not None and self.guard.poll() is None:
            os.killpg(self.guard.pid, signal.SIGKILL)
            self.guard.wait()

    def stop(self) -> None:
        self.kill_group()
        if self.guard is not None:
            for pipe in (self.guard.stdin, self.guard.stdout):
                if pipe is not None:
                    pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def start_all(*servers: VllmServer) -> tuple[VllmServer, ...]:
    """All at once and then waited for: two together take little longer than one."""
    try:
        for server in servers:
            server.start()
        return tuple(server.wait_ready() for server in servers)
    except BaseException:
        for server in servers:
            server.stop()
        raise


def _children(pid: int) -> list[int]:
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (thread / "children").read_text().split()]
    return found

"""Real vLLM servers for tests: a tiny model built once, servers in process groups of their own, stopped by group.

By group, because a killed API server leaves its engine core behind. Nothing here knows the router.
Flags and why: tests/vllm/README.md.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from tests.vllm.guard import Guarded

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
MORE = shlex.split(os.environ.get("SWITCHYARD_TEST_VLLM_FLAGS", ""))
"""For every generating server of a run, as `--stream-interval=4`: tokens in groups, as from an engine that is busy."""
GENERATE = (
    "--max-num-seqs=16",
    "--enable-scale-out",
    "--enable-prompt-tokens-details",
    "--enable-lora",
    "--max-lora-rank=8",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    "--tool-strict-level=parameter",
    *MORE,
)
POOLING = ("--runner=pooling", "--convert=embed")


def available() -> bool:
    return (ENVIRONMENT / "bin" / "vllm").exists()


def environment() -> dict[str, str]:
    """Ours without what would bring our packages into the engine's Python."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | ENV


def tiny_model(adapter: bool = False) -> Path:
    """The model's directory (or the adapter's), built when the builder has changed or was never run."""
    version = hashlib.sha256(BUILDER.read_bytes()).hexdigest()[:12]
    folder = ROOT / ".switchyard" / "models"
    model, lora = folder / f"tiny-{version}", folder / f"tiny-lora-{version}"
    if not (model.exists() and lora.exists()):
        command = [str(ENVIRONMENT / "bin" / "python"), str(BUILDER), str(model), "--lora", str(lora)]
        subprocess.run(command, check=True, capture_output=True, env=environment())
    return lora if adapter else model


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class VllmServer:
    """One server: `start` returns at once, `wait_ready` when it serves, `stop` ends every process of it."""

    def __init__(self, flags: Sequence[str] = GENERATE) -> None:
        self.flags = flags
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="switchyard-vllm-"))
        self._process: Guarded | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the API server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> VllmServer:
        vllm = str(ENVIRONMENT / "bin" / "vllm")
        command = [vllm, "serve", str(tiny_model()), *COMMON, f"--port={self.port}", *self.flags]
        self._process = Guarded(command, log=self._folder / "server.log", env=environment())
        return self

    def wait_ready(self) -> VllmServer:
        until = time.monotonic() + START_LIMIT_S
        while self.alive() and time.monotonic() < until:
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.25)
        raise RuntimeError(f"vLLM did not become ready:\n{self._process.tail() if self._process else ''}")

    def alive(self) -> bool:
        return self._process is not None and self._process.alive()

    def core_pid(self) -> int:
        """The engine core: the child process of the API server that holds the model."""
        for child in _children(self.pid):
            if b"EngineCore" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
        raise LookupError(f"no engine core under {self.pid}")

    def kill_group(self) -> None:
        """What a lost node looks like."""
        if self._process is not None:
            self._process.kill_group()

    def stop(self) -> None:
        self.kill_group()
        shutil.rmtree(self._folder, ignore_errors=True)


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
    """A child is listed under the thread that started it, and threads come and go."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found

"""A whole house on one machine for the end-to-end tests: registry, node agent with its engines, router, one key.

Real processes by their public commands and settings files, on ports of the kernel's choice. Whoever starts one closes
it; should the test run be killed, everything ends with it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests.vllm.guard import Guarded
from tests.vllm.servers import ENVIRONMENT, ROOT, free_port, tiny_model
from wire.connect import RegistrySettings, connect
from wire.records import ModelState, Replica, decode, prefix

CHAT_MODEL = "tiny"
EMBED_MODEL = "tiny-embed"
TENANT = "e2e"
POLL_S = 0.2
STOP_LIMIT_S = 60.0

LIMITS = {"max_model_len": 2048, "max_num_seqs": 16}
VLLM = {"engine": "vllm", "cpu": True, **LIMITS}
TOOL_FLAGS = ["--enable-auto-tool-choice", "--tool-call-parser=hermes", "--tool-strict-level=parameter"]


def simulated_models() -> list[dict[str, Any]]:
    return [
        {"name": CHAT_MODEL, "engine": "simulated", "replicas": 2, **LIMITS},
        {"name": EMBED_MODEL, "engine": "simulated", "task": "embed"},
    ]


def vllm_models() -> list[dict[str, Any]]:
    path = str(tiny_model())
    return [
        {"name": CHAT_MODEL, "path": path, "replicas": 2, "args": TOOL_FLAGS, **VLLM},
        {"name": EMBED_MODEL, "path": path, "task": "embed", "args": ["--convert=embed"], **VLLM},
    ]


class Stack:
    """Started by `start`, which returns when every model answers through the router."""

    def __init__(self, models: Sequence[Mapping[str, Any]], *, start_limit_s: float) -> None:
        self._models = models
        self._start_limit_s = start_limit_s
        self._folder = Path(tempfile.mkdtemp(prefix="switchyard-e2e-"))
        self._processes: dict[str, Guarded] = {}
        self.registry = f"127.0.0.1:{free_port()}"
        self.router_url = f"http://127.0.0.1:{free_port()}"
        self.key = ""

    def start(self) -> Stack:
        try:
            self._start_registry()
            self.key = self._make_key()
            self._run("agent", "node_agent", self._agent_settings())
            self._run("router", "router", self._router_settings())
            self._wait_until_all_answer()
        except BaseException as error:
            error.add_note(self.story())
            self.close()
            raise
        return self

    def close(self) -> None:
        """The router first and the agent before the registry, as people would; each gets its time to end well."""
        for name in ("router", "agent", "registry"):
            if name in self._processes:
                self._processes.pop(name).terminate(STOP_LIMIT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def replicas(self, model: str) -> list[Replica]:
        """The ready ones as the registry has them, by name."""
        return asyncio.run(self._replicas(model))

    def story(self) -> str:
        """The ends of all logs, for whoever reads a failure."""
        logs = sorted(self._folder.rglob("*.log"))
        return "\n".join(f"--- {log.name}\n" + log.read_text(errors="replace")[-3000:] for log in logs)

    async def _replicas(self, model: str) -> list[Replica]:
        registry = connect(RegistrySettings(endpoints=(self.registry,)))
        try:
            listed = await registry.list(prefix(Replica))
        finally:
            await registry.close()
        found = [decode(Replica, entry.value) for entry in listed.entries]
        ready = [one for one in found if one.model == model and one.state is ModelState.READY]
        return sorted(ready, key=lambda one: one.replica)

    def _start_registry(self) -> None:
        port = self.registry.rpartition(":")[2]
        command = [sys.executable, "-m", "wire.embedded", "--port", port]
        self._processes["registry"] = Guarded(command, log=self._folder / "registry.log", env=_environment())
        until = time.monotonic() + 30
        while "listening" not in self._processes["registry"].tail():
            if time.monotonic() > until:
                raise TimeoutError("the registry does not listen")
            time.sleep(0.05)

    def _make_key(self) -> str:
        command = [sys.executable, "-m", "control.cli", "keys", "create", "--tenant", TENANT]
        command += ["--registry-endpoints", self.registry]
        made = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=60, check=False)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    def _run(self, name: str, module: str, settings: Mapping[str, Any]) -> None:
        config = self._folder / f"{name}.toml"
        config.write_text(_toml(module, settings))
        command = [sys.executable, "-m", module, "--config", str(config)]
        self._processes[name] = Guarded(command, log=self._folder / f"{name}.log", env=_environment())

    def _agent_settings(self) -> dict[str, Any]:
        return {
            "node": "node-1",
            "device_class": "test",
            "state_dir": str(self._folder / "agent"),
            "orphan_grace_s": 2.0,
            "drain_limit_s": 1.0,
            "vllm_python": str(ENVIRONMENT / "bin" / "python"),
            "registry": {"endpoints": [self.registry]},
            "models": list(self._models),
        }

    def _router_settings(self) -> dict[str, Any]:
        return {
            "port": int(self.router_url.rpartition(":")[2]),
            "data_dir": str(self._folder / "journal"),
            "drain_notice_s": 0.1,
            "drain_limit_s": 5.0,
            "registry": {"endpoints": [self.registry]},
        }

    def _wait_until_all_answer(self) -> None:
        until = time.monotonic() + self._start_limit_s
        wanted = {str(model["name"]): int(model.get("replicas", 1)) for model in self._models}
        while any(len(self.replicas(name)) < replicas for name, replicas in wanted.items()):
            self._still_trying(until)
        with httpx.Client(headers={"authorization": f"Bearer {self.key}"}, timeout=60) as client:
            for path, body in (
                ("/v1/chat/completions", {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "hi"}]}),
                ("/v1/embeddings", {"model": EMBED_MODEL, "input": "hi"}),
            ):
                while not _answers(client, f"{self.router_url}{path}", {**body, "max_tokens": 1}):
                    self._still_trying(until)

    def _still_trying(self, until: float) -> None:
        for name, process in self._processes.items():
            assert process.alive(), f"{name} ended"
        assert time.monotonic() < until, "not ready in time"
        time.sleep(POLL_S)


def _answers(client: httpx.Client, url: str, body: Mapping[str, Any]) -> bool:
    try:
        return client.post(url, json=body).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SWITCHYARD_")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
    return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "GRPC_ENABLE_FORK_SUPPORT": "0"}


def _toml(section: str, settings: Mapping[str, Any]) -> str:
    """JSON values are TOML values, apart from objects; those become inline tables."""
    return f"[{section}]\n" + "".join(f"{name} = {_value(value)}\n" for name, value in settings.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    return msgspec.json.encode(value).decode()

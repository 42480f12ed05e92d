"""The simulated engine as the agent starts it: our own interpreter, ready in under a second, no GPU, no weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from node_agent.engines.base import Launch, Step
from node_agent.settings import ModelConfig

ROOT = Path(__file__).resolve().parents[2]


class SimulatedEngine:
    kind = "simulated"
    steps: tuple[Step, ...] = ()
    load_prior_s = 1.0
    wake_prior_s = 0.5
    token_ids = True

    def launch(self, model: ModelConfig, *, host: str, port: int, base_env: Mapping[str, str]) -> Launch:
        argv = [model.python or sys.executable, "-m", "node_agent.engines.simulated"]
        argv += ["--host", host, "--port", str(port), "--model", model.name]
        argv += ["--task", str(model.task), "--shutdown-timeout", f"{model.drain_s:g}"]
        for value, flag in (
            (model.profile, "--profile"),
            (model.max_model_len, "--max-model-len"),
            (model.max_num_seqs, "--max-num-seqs"),
            (model.max_batch_tokens, "--max-num-batched-tokens"),
        ):
            argv += [flag, str(value)] if value else []
        path = [str(ROOT), str(ROOT / "proto"), *filter(None, [base_env.get("PYTHONPATH", "")])]
        return Launch((*argv, *model.args), {**base_env, "PYTHONPATH": ":".join(path), **model.env})

    def on_disk(self, model: ModelConfig) -> bool:
        return True

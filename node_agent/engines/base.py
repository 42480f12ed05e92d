"""What the agent must know to run an engine of some kind: its command line, its environment, its start-up in words.

An `Engine` describes; it starts nothing (process.py) and calls nothing (client.py: every kind speaks vLLM's HTTP).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from node_agent.settings import ModelConfig


class Launch(msgspec.Struct, frozen=True):
    """How to start one engine process."""

    argv: tuple[str, ...]
    env: dict[str, str]


class Step(msgspec.Struct, frozen=True):
    """A line of the log that contains `mark` means that start-up has come so far."""

    mark: bytes
    phase: str
    fraction: float


class Engine(Protocol):
    kind: str
    steps: tuple[Step, ...]
    load_prior_s: float
    """Expected start-up before one was measured."""
    wake_prior_s: float
    token_ids: bool
    """Returns and accepts token ids, as an exact resume needs."""

    def launch(self, model: ModelConfig, *, host: str, port: int, base_env: Mapping[str, str]) -> Launch: ...

    def on_disk(self, model: ModelConfig) -> bool:
        """Whether the weights are on this host, as far as one can tell without loading them."""
        ...


class StartUp(msgspec.Struct, frozen=True):
    phase: str = "starting"
    fraction: float = 0.0


def progress(steps: tuple[Step, ...], log: bytes) -> StartUp:
    """The furthest step that the log shows."""
    reached = [step for step in steps if step.mark in log]
    return StartUp(reached[-1].phase, reached[-1].fraction) if reached else StartUp()

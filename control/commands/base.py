"""What a command is: its flags, its examples, and the function that does it. The summary is in `cli.COMMANDS`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Command(NamedTuple):
    run: Callable[[argparse.Namespace, Mapping[str, str]], int]
    """Return the exit code, or raise Failed or Misused."""
    examples: str = ""
    configure: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    passes_flags_on: bool = False
    """The command belongs to another process, which parses its own flags: they arrive as `rest`."""


def lines(*examples: str) -> str:
    return "\n".join(f"  switchyard {example}" for example in examples)

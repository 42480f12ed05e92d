"""`switchyard router | node-agent | control`: become that process. The rooms never import each other, so this is an
exec of `python -m ROOM` with the flags passed on, `--help` included; signals and the exit code are the process's own.
`-P` keeps a directory that happens to be called `router` where the person stands from being taken for ours.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping

from control.commands.base import Command


def _becomes(module: str) -> Callable[[argparse.Namespace, Mapping[str, str]], int]:
    def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, "-P", "-m", module, *args.rest], dict(env))  # noqa: S606 - no shell is the point

    return run


ROUTER = Command(run=_becomes("router"), passes_flags_on=True)
NODE_AGENT = Command(run=_becomes("node_agent"), passes_flags_on=True)
CONTROL = Command(run=_becomes("control"), passes_flags_on=True)

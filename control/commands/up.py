"""`switchyard up`: read its settings, set up the screen, and run it."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from control.commands.base import Command, lines
from control.commands.reach import settled
from control.screen import Screen
from control.up import Up
from control.up_settings import UpSettings
from wire.settings import add_flags

SECTION = "up"
INTERRUPTED = 130


def _run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    settings, _ = settled(UpSettings, section=SECTION, args=args, env=env)
    screen = Screen(sys.stdout, env, clock=time.monotonic)

    async def run() -> bool:
        return await Up(settings, env=env, screen=screen, command=called_as(sys.argv[0])).run(once=args.once)

    was_up = asyncio.run(run())
    return 0 if was_up else INTERRUPTED


def called_as(program: str) -> str:
    """The word that works where this person stands: `switchyard` if that is on the PATH, else its relative path."""
    on_path = shutil.which("switchyard")
    if on_path and Path(on_path).resolve() == Path(program).resolve():
        return "switchyard"
    relative = os.path.relpath(program)
    return program if relative.startswith("..") else relative


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="stop everything after the first answer (for CI)")
    add_flags(parser, UpSettings, section=SECTION)


UP = Command(
    run=_run,
    configure=_configure,
    examples=lines(
        "up",
        "up --engine vllm",
        "up --nodes 3 --replicas 12 --port 8080",
        "up --registry etcd --etcd-binary /usr/local/bin/etcd",
        "up --once",
    ),
)

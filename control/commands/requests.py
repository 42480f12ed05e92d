"""`switchyard why` and `switchyard usage`: what became of one request, and of all of them."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from control.ask import Router
from control.commands.base import Command, lines
from control.commands.chat import add_target, target
from control.commands.fleet import print_rows
from control.commands.reach import add_data_dir, running_in
from control.core import durations, tables
from control.core.usage_sums import by_tenant_and_model
from control.errors import Failed, Misused
from wire.usage import UsageRecord, decode_line


def _why(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    print(asyncio.run(_explanation(args, env)).rstrip())
    return 0


async def _explanation(args: argparse.Namespace, env: Mapping[str, str]) -> str:
    async with Router(*target(args, env)) as router:
        return await router.why(args.request_id)


def _usage(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    directory = _journal(args, env)
    try:
        since = time.time_ns() - int(durations.parse(args.since) * 1e9) if args.since else 0
    except ValueError as error:
        raise Misused(f"--since: {error}") from error
    sums = by_tenant_and_model(_records(directory), since_unix_ns=since)
    if args.json:
        print_rows(sums)
        return 0
    headings = ("tenant", "model", "requests", "failed", "retried", "prompt tokens", "of them cached", "output tokens")
    cells = [msgspec.structs.astuple(row) for row in sums]
    print(tables.render(headings, cells) if cells else f"no requests in the journal at {directory}")
    return 0


def _journal(args: argparse.Namespace, env: Mapping[str, str]) -> Path:
    """The running `up` knows best; a stopped one left its journal behind."""
    run_dir, run = running_in(args, env)
    directory = Path(args.journal or (run.journal_dir if run else run_dir.path / "router"))
    if not directory.is_dir():
        raise Failed(f"there is no usage journal at {directory}; name its directory with --journal.")
    return directory


def _records(directory: Path) -> Iterator[UsageRecord]:
    for path in sorted(directory.rglob("usage-*.jsonl")):
        yield from _lines(path)


def _lines(path: Path) -> Iterator[UsageRecord]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield decode_line(line)
            except msgspec.DecodeError as error:
                print(f"skipped line {number} of {path}: {error}", file=sys.stderr)


def _configure_why(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("request_id", help="the x-request-id of the answer")
    add_target(parser)


def _configure_usage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--journal", default="", metavar="DIR", help="a router's journal (default: that of `up`)")
    parser.add_argument(
        "--since", default="", metavar="DURATION", help="only requests of the last 1h, 7d (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    add_data_dir(parser)


WHY = Command(run=_why, configure=_configure_why, examples=lines("why req-0193f2", "why $ID --base-url $URL"))
USAGE = Command(run=_usage, configure=_configure_usage, examples=lines("usage", "usage --since 1h --json"))

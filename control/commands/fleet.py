"""`switchyard nodes` and `switchyard models`: what the registry says is there, as tables or JSON."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence

import msgspec

from control.commands.base import Command, lines
from control.commands.reach import Reach, add_reach, read_reach, registry_of
from control.core import durations, tables
from control.core.fleet import Fleet, model_rows, node_rows
from control.terminal import style_for
from wire.records import ROOT, Replica


async def read_fleet(reach: Reach) -> Fleet:
    fleet = Fleet()
    async with registry_of(reach) as registry:
        snapshot = await registry.list(ROOT)
    fleet.replace({entry.key: entry.value for entry in snapshot.entries})
    return fleet


def print_rows(rows: Sequence[msgspec.Struct]) -> None:
    """For programs: one JSON list, fields by name, nothing rounded."""
    print(msgspec.json.format(msgspec.json.encode(rows)).decode())


def _nodes(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    fleet = asyncio.run(read_fleet(read_reach(args, env)))
    rows = node_rows(fleet, now_unix_ns=time.time_ns())
    if args.json:
        print_rows(rows)
        return 0
    style = style_for(sys.stdout, env)
    cells = [
        (r.node, r.region, r.device_class, r.state, r.replicas, ", ".join(r.models), durations.show(r.age_s), r.address)
        for r in rows
    ]
    headings = ("node", "region", "class", "state", "replicas", "models", "age", "agent")
    paint = lambda heading, text: style.state(text.strip(), text) if heading == "state" else text  # noqa: E731
    print(tables.render(headings, cells, paint=paint) if rows else "no nodes: no agent has registered in this registry")
    _mention_unreadable(fleet)
    return 0


def _models(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    fleet = asyncio.run(read_fleet(read_reach(args, env)))
    rows = model_rows(fleet)
    if args.json:
        print_rows(rows)
        return 0
    headings = ("model", "task", "replicas", "nodes", "routing", "fallback", "adapter of")
    cells = [(r.model, r.task, r.replicas, r.nodes, r.routing, r.fallback, r.adapter_of) for r in rows]
    print(tables.render(headings, cells) if rows else "no models: no replica and no policy is in this registry")
    _mention_unreadable(fleet)
    return 0


def _replicas(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    fleet = asyncio.run(read_fleet(read_reach(args, env)))
    rows = fleet.of(Replica)
    if args.json:
        print_rows(rows)
        return 0
    style = style_for(sys.stdout, env)
    headings = ("replica", "node", "model", "state", "generation", "engine")
    cells = [(r.replica, r.node, r.model, r.state.value, r.generation, r.address) for r in rows]
    paint = lambda heading, text: style.state(text.strip(), text) if heading == "state" else text  # noqa: E731
    print(tables.render(headings, cells, paint=paint) if rows else "no replicas: no agent has registered one")
    _mention_unreadable(fleet)
    return 0


def _mention_unreadable(fleet: Fleet) -> None:
    for key, reason in sorted(fleet.unreadable.items()):
        print(f"skipped {key}: {reason}", file=sys.stderr)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    add_reach(parser)


NODES = Command(
    run=_nodes,
    configure=_configure,
    examples=lines("nodes", "nodes --json | jq '.[].node'", "nodes --registry-endpoints etcd-1:2379,etcd-2:2379"),
)
MODELS = Command(run=_models, configure=_configure, examples=lines("models", "models --json"))
REPLICAS = Command(run=_replicas, configure=_configure, examples=lines("replicas", "replicas --json"))

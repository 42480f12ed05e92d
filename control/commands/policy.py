"""`switchyard policy MODEL`: how a model is served, and changing it while routers run."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping

from control import policies
from control.commands.base import Command, lines
from control.commands.fleet import print_rows
from control.commands.reach import add_reach, read_reach, registry_of
from control.core import tables
from control.core.policies import changes, described, rows
from control.errors import Misused
from wire.records import ModelPolicy, Replica, UnreadableRecord, decode, prefix
from wire.registry import Registry


def _policy(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    return asyncio.run(_run(args, env))


async def _run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    try:
        wanted = changes(args.model, args.set, args.unset)
    except ValueError as error:
        raise Misused(f"{error}.") from error
    if args.reset and wanted:
        raise Misused("--reset goes back to the defaults; it cannot be combined with --set and --unset.")
    async with registry_of(read_reach(args, env)) as registry:
        if args.reset:
            there = await policies.remove(registry, args.model)
            print(f"the policy of {args.model} {'is removed' if there else 'was not written'}; the defaults hold")
            return 0
        if wanted:
            await _change(registry, args.model, wanted)
            return 0
        policy = await policies.read(registry, args.model)
        served = await _served(registry)
    if args.json:
        print_rows([policy or ModelPolicy(model=args.model)])
        return 0
    cells = [(row.key, row.value, row.default, row.meaning) for row in rows(policy or ModelPolicy(model=args.model))]
    print(tables.render(("key", "value", "default", "meaning"), cells))
    if policy is None:
        print(f"no policy of {args.model} is written: these are the defaults", file=sys.stderr)
    _mention_unserved(args.model, served)
    return 0


async def _change(registry: Registry, model: str, wanted: dict[str, object]) -> None:
    before, after = await policies.change(registry, model, wanted)
    told = described(before, after)
    print("\n".join(told) if told else f"the policy of {model} says so already")
    served = await _served(registry)
    _mention_unserved(after.adapter_of or model, served)
    if after.fallback:
        _mention_unserved(after.fallback, served)


async def _served(registry: Registry) -> set[str]:
    names: set[str] = set()
    for entry in (await registry.list(prefix(Replica))).entries:
        try:
            replica = decode(Replica, entry.value)
        except UnreadableRecord:
            continue
        names |= {replica.model, *replica.adapters}
    return names


def _mention_unserved(model: str, served: set[str]) -> None:
    if model not in served:
        print(f"note: no replica serves {model} now; `switchyard models` shows what is there", file=sys.stderr)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="the name that clients use; it may be one that has no replica yet")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change it; may be repeated")
    parser.add_argument("--unset", action="append", default=[], metavar="KEY", help="back to its default")
    parser.add_argument("--reset", action="store_true", help="remove the policy: all defaults")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    add_reach(parser)


POLICY = Command(
    run=_policy,
    configure=_configure,
    examples=lines(
        "policy sim-chat                                     what holds now, with each key's meaning",
        "policy sim-chat --set hedge=true --set first_token_limit_s=30",
        "policy sim-chat --set admission=batch --set fallback=sim-small",
        "policy sim-chat --set routing=lmetric               see `switchyard whatif --policy lmetric` before",
        "policy sim-chat --unset hedge",
    ),
)

"""`switchyard whatif`: the decisions a router remembers, made again under another policy or other constants."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping

import msgspec

from control.ask import Router
from control.commands.base import Command, lines
from control.commands.chat import add_target, target
from control.core import tables
from control.core.replayed import Replayed, in_words
from control.errors import Misused


def _whatif(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    for text in args.set:
        if "=" not in text:
            raise Misused(f"{text!r} is no constant; write it like tie_ms=0.")
    answer = asyncio.run(_asked(args, env))
    if args.json:
        print(msgspec.json.format(answer).decode())
        return 0
    found = msgspec.json.decode(answer, type=Replayed)
    print(in_words(found, policy=args.policy, constants=args.set))
    if found.examples:
        headings = ("request", "model", "chosen", "instead", "chosen ms", "instead ms", "difference ms")
        cells = [
            (e.request, e.model, e.chosen, e.instead, e.chosen_ms, e.instead_ms, e.difference_ms)
            for e in found.examples
        ]
        print(f"\n{tables.render(headings, cells)}")
    return 0


async def _asked(args: argparse.Namespace, env: Mapping[str, str]) -> bytes:
    async with Router(*target(args, env)) as router:
        return await router.whatif(policy=args.policy, model=args.only, constants=args.set)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", default="expected_time", help="routing policy (default: expected_time)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="CONSTANT=VALUE", help="such as tie_ms=0; may be repeated"
    )
    parser.add_argument("--only", default="", metavar="MODEL", help="only decisions about requests for this model")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    add_target(parser)


WHATIF = Command(
    run=_whatif,
    configure=_configure,
    examples=lines(
        "whatif --policy lmetric                  the last decisions, had the model's policy said lmetric",
        "whatif --policy least_in_flight --only sim-chat",
        "whatif --set excess_tpot_weight=0.25     the same policy, a slower decode weighing more",
    ),
)

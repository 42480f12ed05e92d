"""Commands to node agents: drain, undrain, load, unload, sleep, wake. The agent is found through the registry; what it
reports is shown as it comes, one line per step."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping

from control import agents
from control.commands.base import Command, lines
from control.commands.fleet import read_fleet
from control.commands.reach import Reach, add_reach, read_reach
from control.core import durations
from control.core.fleet import Fleet, find_node, find_replica
from control.errors import Failed, Misused
from control.terminal import is_live
from wire.records import Node, Replica
from wire.v1 import node_pb2 as pb


def _drain(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    limit_s = 0.0 if args.now else _limit(args.limit)
    return asyncio.run(_drain_node(args, env, agents.drain(args.replica, limit_s=limit_s, stop=args.stop), "drained"))


def _undrain(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    return asyncio.run(_drain_node(args, env, agents.undrain(args.replica), "takes requests again"))


async def _drain_node(args: argparse.Namespace, env: Mapping[str, str], call: agents.Call, done: str) -> int:
    reach = read_reach(args, env)
    fleet = await read_fleet(reach)
    node = find_node(fleet, args.node)
    if node is None:
        raise Failed(_no_such("node", args.node, [n.node for n in fleet.of(Node)]))
    await _send(reach, node.address, call, env)
    print(f"{args.replica or node.node}: {done}")
    return 0


def _replica_command(
    make: Callable[[argparse.Namespace], agents.Call], done: str
) -> Callable[[argparse.Namespace, Mapping[str, str]], int]:
    async def send(args: argparse.Namespace, env: Mapping[str, str]) -> int:
        reach = read_reach(args, env)
        await _send(reach, _address(await read_fleet(reach), args.replica), make(args), env)
        print(f"{args.replica}: {done}")
        return 0

    return lambda args, env: asyncio.run(send(args, env))


async def _send(reach: Reach, address: str, call: agents.Call, env: Mapping[str, str]) -> None:
    credentials = reach.settings.agent_tls.channel_credentials()
    await agents.command(address, call, on_progress=_printer(env), credentials=credentials)


def _address(fleet: Fleet, replica: str) -> str:
    found = find_replica(fleet, replica)
    if found is None:
        raise Failed(_no_such("replica", replica, [r.replica for r in fleet.of(Replica)]))
    return found[1].address


def _printer(env: Mapping[str, str]) -> Callable[[pb.Progress], None]:
    """On a terminal a step redraws its own line; elsewhere each step is a line and repeats are left out."""
    live, shown, last = is_live(sys.stdout, env), {""}, ""

    def show(progress: pb.Progress) -> None:
        nonlocal last
        step = f"{progress.replica}: {progress.phase}".removeprefix(": ")
        percent = f" {progress.fraction:.0%}" if 0 < progress.fraction < 1 else ""
        text = f"{step}{percent}" + (f" ({progress.detail})" if progress.detail not in ("", progress.phase) else "")
        if live:
            sys.stdout.write(("\x1b[1A\x1b[2K" if step == last else "") + text + "\n")
        elif text not in shown:
            print(text)
        last = step
        shown.add(text)
        sys.stdout.flush()

    return show


def _no_such(kind: str, name: str, known: list[str]) -> str:
    there = f"it knows {', '.join(known)}" if known else f"it knows no {kind} at all"
    return f"the registry knows no {kind} {name!r}; {there}."


def _limit(text: str) -> float:
    try:
        return durations.parse(text)
    except ValueError as error:
        raise Misused(f"--limit: {error}") from error


def _configure_drain(parser: argparse.ArgumentParser) -> None:
    _configure_undrain(parser)
    parser.add_argument("--limit", default="60s", metavar="DURATION", help="longest wait for streams (default: 60s)")
    parser.add_argument("--now", action="store_true", help="routers continue its streams on other replicas at once")
    parser.add_argument("--stop", action="store_true", help="stop the engines when their streams have ended")


def _configure_undrain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", help="the node, as `switchyard nodes` shows it")
    parser.add_argument("--replica", default="", help="only this replica of the node")
    add_reach(parser)


def _configure_replica(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("replica", help="the replica, as `switchyard replicas` shows it")
    add_reach(parser)


def _configure_sleep(parser: argparse.ArgumentParser) -> None:
    _configure_replica(parser)
    parser.add_argument(
        "--level", type=int, choices=(1, 2), default=1, help="1: weights to host memory, 2: dropped (default: 1)"
    )


DRAIN = Command(
    run=_drain,
    configure=_configure_drain,
    examples=lines("drain node-1", "drain node-1 --limit 5m --stop", "drain node-1 --replica node-1.a --now"),
)
UNDRAIN = Command(run=_undrain, configure=_configure_undrain, examples=lines("undrain node-1"))
LOAD = Command(
    run=_replica_command(lambda args: agents.load(args.replica), "loaded"),
    configure=_configure_replica,
    examples=lines("load node-1.a"),
)
UNLOAD = Command(
    run=_replica_command(lambda args: agents.unload(args.replica), "unloaded"),
    configure=_configure_replica,
    examples=lines("unload node-1.a"),
)
SLEEP = Command(
    run=_replica_command(lambda args: agents.sleep(args.replica, level=args.level), "sleeps"),
    configure=_configure_sleep,
    examples=lines("sleep node-1.a", "sleep node-1.a --level 2"),
)
WAKE = Command(
    run=_replica_command(lambda args: agents.wake(args.replica), "awake"),
    configure=_configure_replica,
    examples=lines("wake node-1.a"),
)

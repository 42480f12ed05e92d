"""Where a command finds the registry, the router and a key.

Its flags, its environment, its file, or the `switchyard up` that runs in the data directory: what is closest to the
person who typed wins.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from control.core import durations
from control.errors import Failed
from control.rundir import Run, RunDir
from wire.connect import RegistrySettings, connect
from wire.registry import Registry, RegistryUnavailable
from wire.settings import Settings, add_flags, read, render
from wire.tls import TlsFiles

DATA_DIR = ".switchyard"

S = TypeVar("S", bound=Settings)


class CliSettings(Settings, frozen=True, kw_only=True):
    data_dir: Annotated[str, Meta(description="directory of the `switchyard up` to talk to")] = DATA_DIR
    registry: RegistrySettings = RegistrySettings()
    agent_tls: Annotated[TlsFiles, Meta(description="certificates for gRPC to node agents")] = TlsFiles()


class Reach(msgspec.Struct, frozen=True):
    settings: CliSettings
    run: Run | None
    """The `up` in the data directory, if one is running."""


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """For commands that need the data directory and no registry."""
    parser.add_argument("--data-dir", metavar="DIR", help="of `switchyard up` (env SWITCHYARD_CLI_DATA_DIR)")


def running_in(args: argparse.Namespace, env: Mapping[str, str]) -> tuple[RunDir, Run | None]:
    run_dir = RunDir(Path(args.data_dir or env.get("SWITCHYARD_CLI_DATA_DIR") or DATA_DIR))
    return run_dir, run_dir.running()


def add_reach(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, CliSettings, section="cli")


def read_reach(args: argparse.Namespace, env: Mapping[str, str]) -> Reach:
    settings, origins = settled(CliSettings, section="cli", args=args, env=env)
    run = RunDir(Path(settings.data_dir)).running()
    if run is not None and origins["registry.endpoints"] == "default":
        registry = msgspec.structs.replace(settings.registry, endpoints=run.registry_endpoints)
        settings = msgspec.structs.replace(settings, registry=registry)
    return Reach(settings, run)


@asynccontextmanager
async def registry_of(reach: Reach) -> AsyncIterator[Registry]:
    """Raise Failed, with the remedy, when no registry answers."""
    registry = connect(reach.settings.registry)
    try:
        yield registry
    except RegistryUnavailable as error:
        raise Failed(
            f"no registry answers at {', '.join(reach.settings.registry.endpoints)} within "
            f"{durations.show(reach.settings.registry.timeout_s)}; start one with `switchyard up`, say where yours is "
            "with --registry-endpoints HOST:PORT, or wait longer for a slow one with --registry-timeout-s."
        ) from error
    finally:
        await registry.close()


def settled(
    cls: type[S], *, section: str, args: argparse.Namespace, env: Mapping[str, str]
) -> tuple[S, Mapping[str, str]]:
    """The settings and their origins. With --print-settings: print them and exit."""
    settings, origins = read(cls, section=section, flags=vars(args), env=env)
    if args.print_settings:
        print(render(settings, origins, section=section))
        sys.exit(0)
    return settings, origins

"""What the comparison asks of a router: how it is started in front of given engines, and nothing else.

One file per group says it for its routers: proxies.py, llm_routers.py, python_proxies.py, switchyard.py. A contestant
that cannot run here says why in a sentence and is left out of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
REMEDY = "run `python -m loadtest.peers install`"


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """Where a contestant is put."""

    port: int
    engines: tuple[str, ...]
    """host:port of each engine."""
    model: str
    directory: Path
    """For its configuration and logs."""
    health: str = "/health"
    """A path that the engines answer with 200."""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = {}
    ready: str = ""
    """Wait for a line of the log that begins so before the next command starts."""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """How to start it, and how to speak with it once it runs."""

    router: Command | None
    """None: there is no router, the client speaks with the first engine."""
    helpers: tuple[Command, ...] = ()
    """What it needs beside it (a registry, a sink for spans); these run on the load's core and are not measured."""
    port: int
    health: str
    """Answers 200 once requests can be sent."""
    api_key: str = ""


class Contestant(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    about: str
    missing: Callable[[], str]
    """Empty, or why it cannot run here and what would help."""
    launch: Callable[[Site], Launch]


def environment(group: str) -> Path:
    """The virtual environment of a group of peers."""
    return ENVIRONMENTS / group


def lacks(group: str, program: str) -> Callable[[], str]:
    """For contestants that live in one of our environments: is the program there?"""

    def missing() -> str:
        path = environment(group) / "bin" / program
        return "" if path.exists() else f"{path.relative_to(ROOT)} is not there; {REMEDY}"

    return missing

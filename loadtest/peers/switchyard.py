"""Switchyard with everything on: API keys, validation, the decision, the usage journal, a span per request and attempt.

One router process, as it would run beside others; once as Python reads it and once with its hot path compiled. What it
needs runs on the load's core: a registry (real etcd where there is one, else the embedded one), records and load
reports of the engines (register.py), a sink for spans (the engine takes them at /v1/traces).
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from control.registry_server import embedded_command, etcd_command, find_etcd
from loadtest.peers.contestant import ROOT, Command, Contestant, Launch, Site
from loadtest.processes import free_port

KEY = "sk-compare-switchyard"
FAST = ROOT / "build" / "fast"


def registry(directory: Path) -> tuple[Command, str]:
    """A registry server of its own and its address."""
    port = free_port()
    etcd = find_etcd()
    if etcd is None:
        argv = embedded_command(port=port)
    else:
        argv = etcd_command(etcd, data_dir=directory / "etcd", client_port=port, peer_port=free_port())
    return Command(name="registry", argv=tuple(argv)), f"127.0.0.1:{port}"


def enrolment(site: Site, endpoint: str) -> Command:
    """Registers the engines and a key, and reports on them, until it is stopped."""
    program = (sys.executable, "-m", "loadtest.register", "--registry", endpoint)
    what = ("--engines", ",".join(site.engines), "--model", site.model, "--key", KEY, "--token-ids")
    return Command(name="register", argv=(*program, *what), ready="registered")


def router(site: Site, endpoint: str, *options: str, house: Path = ROOT) -> Command:
    program = (sys.executable, "-P", "-m", "router", "--port", str(site.port), "--registry-endpoints", endpoint)
    place = ("--data-dir", str(site.directory / "router"), "--log-level", "warning")
    env = {"PYTHONPATH": os.pathsep.join((str(house), str(house / "proto")))}
    return Command(name="switchyard", argv=(*program, *place, *options), env=env)


def _launch(site: Site, house: Path) -> Launch:
    server, endpoint = registry(site.directory)
    command = router(site, endpoint, "--otlp-endpoint", f"http://{site.engines[0]}", house=house)
    helpers = (server, enrolment(site, endpoint))
    return Launch(router=command, helpers=helpers, port=site.port, health="/ready", api_key=KEY)


CONTESTANTS = (
    Contestant(
        name="switchyard",
        about="LLM router, Python, everything on",
        missing=lambda: "",
        launch=partial(_launch, house=ROOT),
    ),
    Contestant(
        name="switchyard-fast",
        about="the same, its hot path compiled (`make fast`)",
        missing=lambda: "" if FAST.exists() else "build/fast is not there; run `make fast`",
        launch=partial(_launch, house=FAST),
    ),
)

"""The usual ways to build this in Python, and no router at all.

`fastapi-httpx` and `fastapi-aiohttp` are pass-through proxies as vLLM's production-stack builds its router: read the
body, pick an engine, hand the chunks of the answer to a StreamingResponse. `bare` only passes bytes on, and is
what no router in Python can beat. `direct` is the loopback itself: what the client, the engines and the kernel cost and
allow, to be subtracted from everybody.
"""

from __future__ import annotations

import sys

from loadtest.peers.contestant import ROOT, Command, Contestant, Launch, Site, environment, lacks


def _passthrough(site: Site, module: str) -> Launch:
    script = ROOT / "loadtest" / "baselines" / f"{module}.py"
    argv = (str(environment("fastapi") / "bin" / "python"), str(script), str(site.port), *site.engines)
    return Launch(router=Command(name=module, argv=argv), port=site.port, health=site.health)


def _bare(site: Site) -> Launch:
    argv = (sys.executable, "-m", "loadtest.baselines.passthrough_bare", str(site.port), *site.engines)
    return Launch(router=Command(name="bare", argv=argv), port=site.port, health=site.health)


def _direct(site: Site) -> Launch:
    return Launch(router=None, port=int(site.engines[0].rsplit(":", 1)[1]), health=site.health)


CONTESTANTS = (
    Contestant(name="direct", about="no router: the harness itself", missing=lambda: "", launch=_direct),
    Contestant(name="bare", about="the least that Python can do, no router", missing=lambda: "", launch=_bare),
    Contestant(
        name="fastapi-aiohttp",
        about="vLLM production-stack's way, Python",
        missing=lacks("fastapi", "uvicorn"),
        launch=lambda site: _passthrough(site, "passthrough_aiohttp"),
    ),
    Contestant(
        name="fastapi-httpx",
        about="vLLM production-stack's former way, Python",
        missing=lacks("fastapi", "uvicorn"),
        launch=lambda site: _passthrough(site, "passthrough_httpx"),
    ),
)

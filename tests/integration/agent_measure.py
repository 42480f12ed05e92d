"""What an agent costs and how fast it notices: the figures in node_agent/README.md. Not a test.

PYTHONPATH=.:proto .venv/bin/python -m tests.integration.agent_measure
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.integration.agent_house import AgentHouse, agent_house, eventually

WINDOW_S = 15.0
TICKS = os.sysconf("SC_CLK_TCK")


def model(replicas: int) -> dict[str, Any]:
    return {"name": "sim", "engine": "simulated", "profile": "instant", "replicas": replicas}


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def kib(pid: int, file: str, name: str) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


async def cost(directory: Path, *, engines: int, scrape_s: float) -> None:
    async with agent_house(directory, models=[model(engines)], scrape_idle_s=scrape_s) as house:
        agent = house.start().pid
        for number in range(engines):
            await house.ready(name=f"n1.sim.{number}", limit_s=120)
        state = house.engine("n1.sim.0")
        began, used = time.monotonic(), cpu_s(agent)
        await asyncio.sleep(WINDOW_S)
        share = (cpu_s(agent) - used) / (time.monotonic() - began)
        keepers = sum(kib(state[name], "smaps_rollup", "Pss:") for name in ("keeper_pid", "warden_pid"))
        print(
            f"{engines} engines scraped each {scrape_s} s: agent {100 * share:.1f} % of a core, "
            f"{kib(agent, 'status', 'VmRSS:') / 1024:.0f} MiB; keeper and warden {keepers / 1024:.1f} MiB (PSS)"
        )


async def detection(directory: Path) -> None:
    async with agent_house(directory, models=[model(1)]) as house:
        house.start()
        for round_ in range(1, 5):  # the fifth crash in a row would be the last
            await house.ready(generation=round_)
            killed = time.monotonic()
            os.kill(house.engine()["pid"], signal.SIGKILL)
            await eventually(lambda: is_not_ready(house))
            noticed = time.monotonic()
            await house.ready(generation=round_ + 1)
            ready = time.monotonic() - killed
            print(
                f"kill -9 of an engine: record changed after {noticed - killed:.2f} s, ready again after {ready:.2f} s"
            )


async def is_not_ready(house: AgentHouse) -> bool:
    found = await house.replica()
    return found is None or found.state != "ready"


async def main() -> None:
    for engines, scrape_s in ((1, 1.0), (1, 0.25), (8, 0.25)):
        with tempfile.TemporaryDirectory() as directory:
            await cost(Path(directory), engines=engines, scrape_s=scrape_s)
    with tempfile.TemporaryDirectory() as directory:
        await detection(Path(directory))


if __name__ == "__main__":
    asyncio.run(main())

"""Real vLLM under a real agent: start, figures, a dying engine core, sleep and wake, a drain with a stream in it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.integration import agent_house as houses
from tests.integration.agent_house import AgentHouse, alive, last
from tests.vllm.servers import ENVIRONMENT, REMEDY, available, tiny_model
from wire.v1 import node_pb2 as pb

R = "n1.tiny.0"
START_LIMIT_S = 180.0

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not available(), reason=REMEDY),
]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AgentHouse]:
    model = {
        "name": "tiny",
        "engine": "vllm",
        "path": str(tiny_model()),
        "python": str(ENVIRONMENT / "bin" / "python"),
        "cpu": True,
        "sleep": True,
        "max_model_len": 2048,
        "max_num_seqs": 16,
        "adapters": {"tiny-lora": str(tiny_model(adapter=True))},
    }
    async with houses.agent_house(tmp_path, models=[model], frozen_limit_s=8.0, drain_limit_s=120.0) as house:
        house.start()
        yield house


async def replica_ready(house: AgentHouse, *, generation: int = 0, limit_s: float = START_LIMIT_S) -> str:
    """The engine's address."""
    found = await house.ready(generation=generation, name=R, limit_s=limit_s)
    assert (2048, 16, 65536, 32) == (
        found.max_model_len,
        found.max_num_seqs,
        found.kv_capacity_tokens,
        found.prefix_block_tokens,
    )
    assert ("tiny-lora",) == found.adapters
    return found.address


async def ask(address: str, model: str) -> int:
    body = {"model": model, "prompt": "once", "max_tokens": 8}
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        return (await http.post(f"http://{address}/v1/completions", json=body)).json()["usage"]["completion_tokens"]


def processes(house: AgentHouse) -> dict[int, str]:
    """Every process of the engine's group, with its command line."""
    group = house.engine(R)["pgid"]
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(path.name)) == group:
                found[int(path.name)] = (path / "cmdline").read_bytes().decode()
        except OSError:
            continue
    house.pids |= found.keys()
    return found


async def test_a_life_of_real_vllm_under_an_agent(house: AgentHouse) -> None:
    address = await replica_ready(house)
    assert 8 == await ask(address, "tiny")
    assert 8 == await ask(address, "tiny-lora")

    members = processes(house)
    core = next(pid for pid, command in members.items() if "EngineCore" in command)
    os.kill(core, signal.SIGKILL)
    address = await replica_ready(house, generation=2)
    assert not any(map(alive, members))

    async with house.stub() as stub:
        assert "" == (await last(stub.Sleep(pb.SleepCommand(replica=R, level=1)))).error
        await house.ready(state="sleeping", name=R)
        assert "" == (await last(stub.Wake(pb.ReplicaCommand(replica=R)))).error
    assert 8 == await ask(address, "tiny")

    members = processes(house)
    lines: list[str] = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stream(address, lines, tokens=500))
        await houses.eventually(lambda: len(lines) > 3)
        house.kill(signal.SIGTERM)
        assert 0 == await house.exited(limit_s=120)
    assert "data: [DONE]" == lines[-1]
    assert not any(map(alive, members))


async def test_a_frozen_engine_core_is_seen_although_health_stays_green(house: AgentHouse) -> None:
    address = await replica_ready(house)
    members = processes(house)
    core = next(pid for pid, command in members.items() if "EngineCore" in command)
    lines: list[str] = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stream(address, lines, tokens=1500))
        await houses.eventually(lambda: len(lines) > 3)
        os.kill(core, signal.SIGSTOP)
        await replica_ready(house, generation=2)
    assert "frozen: work at hand" in house.log()
    assert not any(map(alive, members))


async def stream(address: str, lines: list[str], *, tokens: int) -> None:
    body = {"model": "tiny", "prompt": "once", "max_tokens": tokens, "stream": True, "ignore_eos": True}
    async with httpx.AsyncClient(timeout=120, trust_env=False) as http:
        try:
            async with http.stream("POST", f"http://{address}/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    lines += [line] if line else []
        except httpx.HTTPError as error:
            lines.append(f"cut: {error!r}")

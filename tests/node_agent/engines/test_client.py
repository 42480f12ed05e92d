"""What an agent hears of an engine, and what it could not even ask."""

from __future__ import annotations

import httpx
import pytest

from node_agent.engines.client import Blind, EngineClient, EngineSilent
from tests.scarcity import no_descriptor_left


async def test_an_agent_without_descriptors_is_blind_and_blames_no_engine() -> None:
    async with httpx.AsyncClient() as http:
        client = EngineClient(http, "http://127.0.0.1:1", timeout_s=2.0)
        with no_descriptor_left(), pytest.raises(Blind, match="/health"):
            await client.health()


async def test_an_engine_that_refuses_is_silent_and_the_agent_not_blind() -> None:
    async with httpx.AsyncClient() as http:
        client = EngineClient(http, "http://127.0.0.1:1", timeout_s=2.0)
        with pytest.raises(EngineSilent) as silent:
            await client.health()
    assert not isinstance(silent.value, Blind)

"""Clients that come back to a stream of `python -m router --workers 2`, whichever worker their new connection meets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.test_workers import LIMIT_S, SHOWN, House, alive, house
from tests.router.harness import until
from tests.router.test_kept import Client, connect, data
from wire.connect import RegistrySettings
from wire.connect import connect as connect_registry
from wire.records import Tenant, encode, key


async def switch_on(home: House) -> None:
    registry = connect_registry(RegistrySettings(endpoints=(f"127.0.0.1:{home.registry_port}",)))
    tenant = Tenant(tenant="acme", resume_buffer_s=60.0)
    await registry.put(key(tenant), encode(tenant))
    await registry.close()


async def kept_stream(home: House) -> Client:
    """Its first event was read."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            client = await connect(home, limit_s=LIMIT_S)
            if b"x-switchyard-resume" in client.head:
                return await client.read(1)
            client.leave()


async def replace_all(home: House, parent: subprocess.Popen[bytes]) -> None:
    os.kill(parent.pid, signal.SIGHUP)
    await until(lambda: "all workers are replaced" in home.log.read_text(), LIMIT_S)


async def test_whichever_worker_is_met_the_one_that_keeps_the_stream_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path) as (home, _):
        await switch_on(home)
        first = await kept_stream(home)
        first.leave()
        for _ in range(12):  # the kernel spreads connections over the workers
            back = await connect(home, f"{first.handle}/1", limit_s=LIMIT_S)
            assert 200 == back.status, home.log.read_text()
            back.leave()
        back = await connect(home, f"{first.handle}/1", limit_s=LIMIT_S)
        home.go.set()
        assert SHOWN == data(first.body + await back.rest())

        unknown = await connect(home, "00000000.0123456789abcdef/1", limit_s=LIMIT_S)
        error = json.loads(await unknown.rest())["error"]
        assert (404, "stream_unknown") == (unknown.status, error["code"])


@pytest.mark.slow
async def test_a_worker_that_was_replaced_is_still_found_by_who_comes_back(tmp_path: Path) -> None:
    async with house(tmp_path) as (home, parent):
        await switch_on(home)
        first = await kept_stream(home)
        first.leave()
        await replace_all(home, parent)
        back = await connect(home, f"{first.handle}/1", limit_s=LIMIT_S)
        home.go.set()
        assert SHOWN == data(first.body + await back.rest())


@pytest.mark.slow
async def test_a_stream_passed_on_by_a_sibling_ends_with_an_error_when_the_process_that_keeps_it_dies(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as (home, parent):
        await switch_on(home)
        first = await kept_stream(home)
        await replace_all(home, parent)
        back = await connect(home, f"{first.handle}/1", limit_s=LIMIT_S)
        for pid in filter(alive, home.all_pids()[:2]):
            os.kill(pid, signal.SIGKILL)
        body = await back.rest()
        assert (True, False) == (b'"code":"stream_gone"' in body, b"[DONE]" in body)
        late = await connect(home, f"{first.handle}/1", limit_s=LIMIT_S)
        error = json.loads(await late.rest())["error"]
        assert (404, "stream_unknown") == (late.status, error["code"])
        first.leave()

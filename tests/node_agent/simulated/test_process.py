"""The engine as a process: ready line, loading, ports, signals."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from node_agent.engines.simulated.__main__ import configs, parser


@asynccontextmanager
async def process(*args: str) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "node_agent.engines.simulated", *args]
    child = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.communicate()


async def ready(child: asyncio.subprocess.Process) -> str:
    assert child.stdout is not None
    async with asyncio.timeout(20):
        line = (await child.stdout.readline()).decode()
    assert line.startswith("ready on 127.0.0.1:"), line
    return "http://" + line.removeprefix("ready on ").strip()


BODY = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, "ignore_eos": True}


async def test_it_says_where_it_listens_and_ends_with_0_on_sigterm():
    async with process("--port", "0", "--profile", "instant") as child:
        url = await ready(child)
        async with httpx.AsyncClient() as client:
            assert "sim-8b" == (await client.get(f"{url}/v1/models")).json()["data"][0]["id"]
        child.send_signal(signal.SIGTERM)
        assert 0 == await asyncio.wait_for(child.wait(), 10)


async def test_connections_are_refused_while_it_loads():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with process("--port", str(port), "--load-time-s", "1.5") as child:
        refused = 0
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except ConnectionRefusedError:
                refused += 1
                await asyncio.sleep(0.05)
        writer.close()
        await writer.wait_closed()
        assert refused > 5
        assert f"http://127.0.0.1:{port}" == await ready(child)


async def test_one_process_serves_many_independent_replicas():
    async with process("--ports", "0x3", "--profile", "instant", "--model", "m") as child:
        urls = [await ready(child) for _ in range(3)]
        async with httpx.AsyncClient() as client:
            await client.post(f"{urls[0]}/v1/chat/completions", json={**BODY, "stream": False, "max_tokens": 2})
            stats = [(await client.get(f"{url}/sim/stats")).json()["accepted"] for url in urls]
        assert [1, 0, 0] == stats


async def test_sigterm_with_a_drain_time_lets_streams_finish_and_refuses_new_ones():
    async with process("--port", "0", "--profile", "paced", "--shutdown-timeout", "20") as child:
        url = await ready(child) + "/v1/chat/completions"
        body = {**BODY, "max_tokens": 40}
        async with httpx.AsyncClient() as client, client.stream("POST", url, json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)
            child.send_signal(signal.SIGTERM)
            status = 200
            while status == 200:
                status = (await client.post(url, json={**BODY, "stream": False, "max_tokens": 1})).status_code
            rest = [line async for line in lines if line]
        assert (500, "data: [DONE]") == (status, rest[-1])
        assert 0 == await asyncio.wait_for(child.wait(), 10)


async def test_sigterm_without_a_drain_time_aborts_streams():
    async with process("--port", "0", "--profile", "paced") as child:
        url = await ready(child) + "/v1/chat/completions"
        async with httpx.AsyncClient() as client, client.stream("POST", url, json=BODY) as response:
            lines = response.aiter_lines()
            await anext(lines)
            child.send_signal(signal.SIGTERM)
            rest = [line async for line in lines if line]
        assert '"finish_reason":"abort"' in rest[-2]
        assert "data: [DONE]" == rest[-1]
        assert 0 == await asyncio.wait_for(child.wait(), 10)


async def test_a_port_in_use_is_a_sentence_and_exit_1():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with process("--port", str(taken.getsockname()[1])) as child:
            _, stderr = await asyncio.wait_for(child.communicate(), 20)
            assert (1, True) == (child.returncode, b"Address already in use" in stderr)


async def test_a_fault_can_be_given_at_the_start_and_end_the_process():
    fault = '{"kind":"error","status":429,"retry_after_s":3}'
    async with process("--port", "0", "--profile", "instant", "--fault", fault) as child:
        url = await ready(child)
        async with httpx.AsyncClient() as client:
            assert 429 == (await client.post(f"{url}/v1/chat/completions", json=BODY)).status_code
            await client.post(f"{url}/sim/faults", json={"kind": "exit", "status": 3})
        assert 3 == await asyncio.wait_for(child.wait(), 10)


def test_flags_of_the_real_server_resize_the_profile():
    flags = ["--max-num-seqs", "7", "--kv-cache-tokens", "1000", "--ports", "8101-8103", "--seed", "5"]
    made = configs(parser().parse_args(flags))
    assert [8101, 8102, 8103] == [c.port for c in made]
    assert [5, 6, 7] == [c.seed for c in made]
    assert (7, 992) == (made[0].profile.max_num_seqs, made[0].profile.max_model_len)


@pytest.mark.parametrize("flags", [["--profile", "none"], ["--task", "dance"]])
def test_unknown_choices_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(flags)
    assert "invalid choice" in capsys.readouterr().err

"""`python -m router --workers 2` as processes: one port, one set of figures, replaced and killed under streams."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec

from tests.router.harness import ANSWER, DONE, KEY, MODEL, WHOLE, Engine, Exchange, chat_body, until
from wire.connect import RegistrySettings, connect
from wire.embedded import serve
from wire.records import ApiKey, ModelState, Replica, Router, Tenant, encode, key, prefix
from wire.store import Store
from wire.usage import decode_line

LIMIT_S = 60.0
SHOWN = b"".join([*ANSWER[:3], DONE])


class House:
    """A parent with its workers, an engine, and what a test does with them."""

    def __init__(self, directory: Path, registry_port: int) -> None:
        self.directory = directory
        self.registry_port = registry_port
        self.log = directory / "log"
        self.config = directory / "router.toml"
        self.go = asyncio.Event()
        """Lets streams go on after their first event."""
        self.engine = Engine(self._play)
        self.port = 0

    async def _play(self, exchange: Exchange) -> None:
        if not json.loads(exchange.body).get("stream"):
            await exchange.answer(200, WHOLE)
            return
        exchange.start_stream()
        await exchange.send(ANSWER[0])
        await self.go.wait()
        with contextlib.suppress(ConnectionError):
            for event in ANSWER[1:]:
                await exchange.send(event)
            exchange.writer.write(b"0\r\n\r\n")

    def start(self, *flags: str, port: int = 0) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "router", "--workers", "2", "--port", str(port), "--router-id", "r"]
        command += ["--registry-endpoints", f"127.0.0.1:{self.registry_port}", "--drain-notice-s", "0.2"]
        root = Path(__file__).parents[2]
        env = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'proto'}"}
        data = str(self.directory / "data")
        with self.log.open("ab") as log:
            return subprocess.Popen([*command, "--data-dir", data, *flags], env=env, stdout=log, stderr=log)

    def pids(self) -> dict[str, int]:
        """The latest process of each worker."""
        return {name: int(pid) for name, pid in re.findall(r"worker (w\d) is process (\d+)", self.log.read_text())}

    def all_pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"worker w\d is process (\d+)", self.log.read_text())]

    def client(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=LIMIT_S)

    async def metrics(self) -> dict[str, float]:
        async with self.client() as client:  # a connection of its own: any worker may answer
            lines = (await client.get("/metrics")).text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    async def await_workers(self, *, restarts: int = 0) -> None:
        """Both serve, which they do only when they know the fleet."""
        wanted = {"switchyard_workers": 2.0, "switchyard_worker_restarts_total": float(restarts)}
        async with asyncio.timeout(LIMIT_S):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if wanted.items() <= (await self.metrics()).items():
                        return
                await asyncio.sleep(0.05)

    async def stream(self) -> Stream:
        """Begun: its first event is here."""
        stream = Stream(self.port)
        await stream.begin()
        return stream

    async def gone(self, pids: list[int]) -> None:
        await until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and alive(pid)], LIMIT_S)

    def refuses(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) != 0


class Stream:
    """One request whose stream waits after its first event."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def begin(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        body = json.dumps(chat_body()).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.0\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        await self._reader.readuntil(b"\r\n\r\n")
        self.first = await self._reader.readuntil(b"\n\n")

    async def rest(self) -> bytes:
        """The whole body, shorter where the connection broke."""
        try:
            rest = await asyncio.wait_for(self._reader.read(-1), LIMIT_S)
        except ConnectionError:
            rest = b""
        self._writer.close()
        return self.first + rest


def alive(pid: int) -> bool:
    """A zombie is not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@asynccontextmanager
async def house(directory: Path) -> AsyncIterator[tuple[House, subprocess.Popen[bytes]]]:
    async with serve("127.0.0.1", 0, Store()) as registry_port:
        home = House(directory, registry_port)
        async with home.engine:
            await fill(home)
            home.config.write_text("[router]\n")
            parent = home.start("--config", str(home.config))
            try:
                await until(lambda: "workers on" in home.log.read_text(), LIMIT_S)
                home.port = int(re.findall(r"workers on 127.0.0.1:(\d+)", home.log.read_text())[0])
                await home.await_workers()
                yield home, parent
            finally:
                home.go.set()
                parent.kill()
                parent.wait()
                await home.gone(home.all_pids())


async def fill(home: House) -> None:
    registry = connect(RegistrySettings(endpoints=(f"127.0.0.1:{home.registry_port}",)))
    records = (
        Tenant(tenant="acme"),
        ApiKey(sha256=hashlib.sha256(KEY.encode()).hexdigest(), tenant="acme", label="test"),
        Replica(
            replica="n/0",
            node="n",
            region="local",
            model=MODEL,
            address=home.engine.address,
            state=ModelState.READY,
            generation=1,
        ),
    )
    for record in records:
        await registry.put(key(record), encode(record))
    await registry.close()


async def ended(parent: subprocess.Popen[bytes]) -> int:
    await until(lambda: parent.poll() is not None, LIMIT_S)
    return parent.wait()


async def test_any_worker_answers_for_all(tmp_path: Path) -> None:
    async with house(tmp_path) as (home, _):
        home.go.set()
        ids = [f"request-{n}" for n in range(20)]
        for request_id in ids:
            async with home.client() as client:
                answer = await client.post(
                    "/v1/chat/completions", json=chat_body(stream=False), headers={"x-request-id": request_id}
                )
                assert 200 == answer.status_code
        counted = 'switchyard_requests_total{code="ok",endpoint="chat",model="tiny"}'
        assert [20.0] * 6 == [(await home.metrics())[counted] for _ in range(6)]
        async with home.client() as client:
            stories = [(await client.get(f"/admin/why/{request_id}")).text for request_id in ids]
            assert 404 == (await client.get("/admin/why/never")).status_code
        assert [] == [request_id for request_id, story in zip(ids, stories, strict=True) if request_id not in story]

        segments = sorted((tmp_path / "data").glob("usage-*.jsonl"))
        records = [[decode_line(line) for line in path.read_bytes().splitlines()] for path in segments]
        assert {"r/w0", "r/w1"} == {record.router for one in records for record in one}
        assert [1, 1] == [len({record.router for record in one}) for one in records]
        assert sorted(ids) == sorted(record.request_id for one in records for record in one)

        registry = connect(RegistrySettings(endpoints=(f"127.0.0.1:{home.registry_port}",)))
        found = await registry.list(prefix(Router, "local"))
        await registry.close()
        assert ["r/w0", "r/w1"] == sorted(msgspec.json.decode(entry.value)["router"] for entry in found.entries)

        second = home.start(port=home.port)
        assert 2 == await ended(second)
        assert f"cannot listen on 127.0.0.1:{home.port}" in home.log.read_text()


async def test_a_killed_worker_breaks_its_own_streams_only_and_is_started_again(tmp_path: Path) -> None:
    async with house(tmp_path) as (home, _):
        streams = [await home.stream() for _ in range(20)]
        before = home.pids()
        os.kill(before["w0"], signal.SIGKILL)
        await home.await_workers(restarts=1)
        assert (True, False) == (before["w1"] == home.pids()["w1"], before["w0"] == home.pids()["w0"])
        home.go.set()
        bodies = [await stream.rest() for stream in streams]
        whole = bodies.count(SHOWN)
        assert 0 < whole < 20
        assert [] == [body for body in bodies if body != SHOWN and b"[DONE]" in body]
        counted = 'switchyard_requests_total{code="ok",endpoint="chat",model="tiny"}'
        assert whole == (await home.metrics())[counted]
        os.kill(home.pids()["w1"], signal.SIGKILL)
        await home.await_workers(restarts=2)
        assert whole == (await home.metrics())[counted]  # what Prometheus has seen does not shrink


async def test_a_rolling_restart_refuses_no_connection_and_breaks_no_stream(tmp_path: Path) -> None:
    async with house(tmp_path) as (home, parent):
        before = home.pids()
        streams = [await home.stream() for _ in range(4)]
        answers: list[int] = []

        async def ask() -> None:
            """On a connection of its own each time."""
            while True:
                async with home.client() as client:
                    answer = await client.post("/v1/chat/completions", json=chat_body(stream=False))
                    answers.append(answer.status_code)
                await asyncio.sleep(0.02)  # starting processes need the machine too

        async with asyncio.TaskGroup() as group:
            askers = [group.create_task(ask()) for _ in range(2)]
            os.kill(parent.pid, signal.SIGHUP)
            await until(lambda: "all workers are replaced" in home.log.read_text(), LIMIT_S)
            home.go.set()
            assert [SHOWN] * 4 == [await stream.rest() for stream in streams]
            await home.gone(list(before.values()))
            for asker in askers:
                asker.cancel()
        assert {200} == set(answers)
        assert not set(before.values()) & set(home.pids().values())
        assert 0.0 == (await home.metrics())["switchyard_worker_restarts_total"]


async def test_workers_stay_when_the_new_settings_do_not_serve(tmp_path: Path) -> None:
    async with house(tmp_path) as (home, parent):
        before = home.all_pids()
        home.config.write_text("[router]\nregoin = 'eu'\n")
        os.kill(parent.pid, signal.SIGHUP)
        await until(lambda: "does not serve" in home.log.read_text(), LIMIT_S)
        await home.gone(home.all_pids()[2:])
        assert [True, True] == [alive(pid) for pid in before]
        await home.await_workers()


async def test_one_signal_lets_streams_end_and_the_port_refuses_meanwhile(tmp_path: Path) -> None:
    async with house(tmp_path) as (home, parent):
        stream = await home.stream()
        parent.send_signal(signal.SIGTERM)
        await until(home.refuses, LIMIT_S)
        home.go.set()
        assert SHOWN == await stream.rest()
        assert 0 == await ended(parent)
        assert [] == [pid for pid in home.all_pids() if alive(pid)]


async def test_a_second_signal_ends_streams_with_an_error_at_once(tmp_path: Path) -> None:
    async with house(tmp_path) as (home, parent):
        stream = await home.stream()
        parent.send_signal(signal.SIGINT)
        await until(home.refuses, LIMIT_S)
        parent.send_signal(signal.SIGINT)
        assert 0 == await ended(parent)
        assert b'"error"' in await stream.rest()


async def test_workers_leave_by_themselves_when_their_parent_is_killed(tmp_path: Path) -> None:
    async with house(tmp_path) as (home, parent):
        stream = await home.stream()
        parent.kill()
        parent.wait()
        await home.gone(home.all_pids())
        assert home.refuses()
        assert b"[DONE]" not in await stream.rest()


async def test_settings_that_no_worker_can_use_end_the_parent(tmp_path: Path) -> None:
    home = House(tmp_path, 1)
    parent = home.start("--tls-cert", "/nowhere/cert", "--tls-key", "/nowhere/key")
    assert 2 == await ended(parent)
    assert [] == [pid for pid in home.all_pids() if alive(pid)]

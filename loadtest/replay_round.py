"""One round of a replay: a trace in real time against a live simulated fleet, through one router.

Open loop: requests are sent when the trace says, whatever became of earlier ones. Every contestant gets the same
requests at the same times against a fresh fleet. Routers that know one model only get one process per model, as they
are deployed; engines then wake by themselves when a request waits (fleet.py), because nobody would wake them.

Time to first token is counted from the moment a request was due, an unanswered request counts as infinitely late.
What is run, how often and what is made of it: replay.py.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic, process_time

import msgspec

from loadtest import traces, traffic
from loadtest.client import Client, Exchange
from loadtest.fleet import PLANS, Described
from loadtest.peers import llm_routers, proxies, switchyard
from loadtest.peers.contestant import Contestant, Launch, Site, lacks
from loadtest.processes import CannotStart, Process, Processes, free_port
from loadtest.rig import start
from loadtest.traces import Arrival
from loadtest.verdict import Load, Told, summed

DRAIN_S = 30.0
"""After the last request; what is not answered then is infinitely late."""
SAMPLE_S = 0.5
KEY = "sk-fleet"
MAX_PROMPT = 120_000
"""Tokens: what the engines take."""


class Due(msgspec.Struct, frozen=True):
    at_s: float
    model: str
    request: bytes


class Routed(msgspec.Struct, frozen=True, kw_only=True):
    """A running contestant: which client serves which model."""

    clients: Mapping[str, Client]
    health: Mapping[str, str]
    processes: tuple[Process, ...]
    """The router's, for its CPU."""
    api_key: str


def chosen(load: Load) -> Iterator[tuple[float, int, Arrival, str]]:
    """When it is due in seconds, its number in the trace, what the trace says of it, and its model. Sessions keep their
    model: the second block id, or the request itself, decides."""
    plan = PLANS[load.plan]
    models, weights = list(plan.shares), list(plan.shares.values())
    window = load.seconds * load.speed
    for number, arrival in enumerate(traces.load(load.trace, seed=load.seed)):
        at = arrival.at_s - load.offset_s
        if 0 <= at < window:
            chooser = random.Random(f"{load.seed} {_session(arrival, number)}")
            yield at / load.speed, number, arrival, chooser.choices(models, weights)[0]


def requests(load: Load, key: str) -> list[Due]:
    """The same for all contestants."""
    encoder = Client("127.0.0.1", 80, api_key=key)
    due = []
    for at_s, number, arrival, model in chosen(load):
        body = traffic.replayed(arrival, model, number=number, scale=load.scale, max_prompt=MAX_PROMPT)
        body |= {"ignore_eos": True, "max_tokens": min(body["max_tokens"], load.max_output or body["max_tokens"])}
        due.append(Due(at_s, model, encoder.encode("/v1/chat/completions", body)))
    return due


def _session(arrival: Arrival, number: int) -> int:
    return arrival.blocks[1] if len(arrival.blocks) > 1 else number


async def replay(routed: Routed, due: Sequence[Due]) -> list[tuple[float, Exchange]]:
    """Send everything when it is due and wait for the answers; pairs of how late it was sent, and what came."""
    began = monotonic()
    sent: list[tuple[float, Exchange]] = []
    for one in due:
        await asyncio.sleep(max(0.0, began + one.at_s - monotonic()))
        late = monotonic() - began - one.at_s
        sent.append((late, await routed.clients[one.model].open(one.request)))
    deadline = monotonic() + DRAIN_S
    for _, exchange in sent:
        try:
            async with asyncio.timeout(max(0.01, deadline - monotonic())):
                await exchange.ended()
        except TimeoutError:
            exchange.abort()
    return sent


async def one_round(contestant: Contestant, load: Load, at: Path) -> Told:
    with Processes() as processes:
        own = contestant.name == "switchyard"
        crowd = _start_fleet(load, at, processes, own=own)
        fleet, routed = crowd.described, _own(crowd, at, processes) if own else _peer(contestant, crowd, at, processes)
        await _ready(routed)
        due = requests(load, routed.api_key)
        engines = {described: Client(*_host_port(described.address)) for described in fleet}
        before, idle = sum(process.cpu_s() for process in routed.processes), _harness_s(crowd)
        began = monotonic()
        async with asyncio.TaskGroup() as group:
            imbalances: list[float] = []
            watcher = group.create_task(_watch(engines, imbalances))
            sent = await replay(routed, due)
            watcher.cancel()
        cpu = sum(process.cpu_s() for process in routed.processes) - before
        harness = (_harness_s(crowd) - idle) / (monotonic() - began)
        stats = [await _stats(client) for client in engines.values()]
        for client in (*routed.clients.values(), *engines.values()):
            client.close()
    cold = sum(len(node.cold) for node in PLANS[load.plan].nodes)
    return summed(sent, stats, imbalances, cpu_s=cpu, cold=cold, harness_cores=harness)


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """A running fleet."""

    described: list[Described]
    process: Process
    endpoint: str
    """Of the registry it is in; empty when nobody asks one."""


def _start_fleet(load: Load, at: Path, processes: Processes, *, own: bool) -> Crowd:
    endpoint = ""
    options: tuple[str, ...] = ("--auto-wake",)
    if own:
        server, endpoint = switchyard.registry(at)
        start(processes, server, at)
        options = ("--registry", endpoint, "--key", KEY)
    argv = [sys.executable, "-m", "loadtest.fleet", "--plan", load.plan, "--degrade-after", f"{load.seconds / 2:g}"]
    argv += ["--profile", load.profile] if load.profile else []
    process = processes.start([*argv, *options], name="fleet", directory=at)
    described = msgspec.json.decode(process.await_line("fleet ", limit_s=60), type=list[Described])
    return Crowd(described=described, process=process, endpoint=endpoint)


def _harness_s(crowd: Crowd) -> float:
    """CPU of engines and client; reports and records of the fleet are in its process."""
    return crowd.process.cpu_s() + process_time()


def _own(crowd: Crowd, at: Path, processes: Processes) -> Routed:
    """Switchyard: one router for all models, fed by the fleet's records and reports."""
    engines = tuple(described.address for described in crowd.described)
    site = Site(port=free_port(), engines=engines, model="", directory=at)
    process = start(processes, switchyard.router(site, crowd.endpoint), at)
    launch = Launch(router=None, port=site.port, health="/ready", api_key=KEY)
    return _routed(dict.fromkeys((one.model for one in crowd.described), launch), {site.port: process})


def _peer(contestant: Contestant, crowd: Crowd, at: Path, processes: Processes) -> Routed:
    """One router process per model."""
    launches: dict[str, Launch] = {}
    running: dict[int, Process] = {}
    for model in dict.fromkeys(described.model for described in crowd.described):
        folder = at / model
        folder.mkdir()
        engines = tuple(described.address for described in crowd.described if described.model == model)
        launch = contestant.launch(Site(port=free_port(), engines=engines, model=model, directory=folder))
        assert launch.router is not None, f"{contestant.name} has no process"
        launches[model] = launch
        running[launch.port] = start(processes, launch.router, folder)
    return _routed(launches, running)


def _routed(launches: Mapping[str, Launch], running: Mapping[int, Process]) -> Routed:
    keys = {launch.api_key for launch in launches.values()}
    assert len(keys) == 1, "one key opens all routers of a contestant"
    return Routed(
        clients={model: Client("127.0.0.1", one.port, api_key=one.api_key) for model, one in launches.items()},
        health={model: one.health for model, one in launches.items()},
        processes=tuple(running.values()),
        api_key=keys.pop(),
    )


async def _ready(routed: Routed, limit_s: float = 90.0) -> None:
    """Healthy, and the most common model has answered, so that nobody pays for a first import."""
    deadline = monotonic() + limit_s
    waiting = dict(routed.health)
    while waiting and monotonic() < deadline:
        for model, path in list(waiting.items()):
            if (await routed.clients[model].get(path)).status == 200:
                del waiting[model]
        await asyncio.sleep(0.1)
    model = next(iter(routed.clients))
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    while monotonic() < deadline:
        if (await routed.clients[model].post("/v1/chat/completions", body)).status == 200:
            return
        await asyncio.sleep(0.2)
    raise CannotStart(f"not ready in {limit_s:g} s: {[process.last_words() for process in routed.processes]}")


async def _watch(engines: Mapping[Described, Client], imbalances: list[float]) -> None:
    """How unevenly requests lie on the replicas of a model that has several."""
    while True:
        await asyncio.sleep(SAMPLE_S)
        active: dict[str, list[float]] = {}
        for described, client in engines.items():
            stats = msgspec.json.decode((await client.get("/sim/stats")).text())
            active.setdefault(described.model, []).append(stats["active"])
        spreads = [
            statistics.pstdev(counts) / statistics.fmean(counts)
            for counts in active.values()
            if len(counts) > 2 and sum(counts) >= len(counts)
        ]
        imbalances += spreads


async def _stats(client: Client) -> dict[str, float]:
    stats = msgspec.json.decode((await client.get("/sim/stats")).text())
    engine = stats["engine"]
    sleeping = msgspec.json.decode((await client.get("/is_sleeping")).text()).get("is_sleeping", False)
    return {
        "queries": engine["prefix_queries_tokens"],
        "hits": engine["prefix_hits_tokens"],
        "asleep": float(sleeping),
        "behind_s": stats["behind_s"],
    }


def _rust(name: str, launch: Callable[[Site, str], Launch], policy: str) -> Contestant:
    return Contestant(
        name=f"{name}:{policy}",
        about=f"{name}, {policy}",
        missing=lacks("routers", name),
        launch=lambda site: launch(site, policy),
    )


CONTESTANTS: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        *switchyard.CONTESTANTS,
        *(
            _rust(name, launch, policy)
            for name, launch in (
                ("vllm-router", llm_routers.vllm_router),
                ("smg", llm_routers.smg),
                ("sglang-router", llm_routers.sglang_router),
            )
            for policy in ("cache_aware", "power_of_two")
        ),
        *(one for one in llm_routers.CONTESTANTS if one.name == "litellm"),
        *(one for one in proxies.CONTESTANTS if one.name == "nginx"),
    )
}


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)

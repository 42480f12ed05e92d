"""Puts given engines into a registry, as their node agent would: for measurements that need a router but no agents.

    python -m loadtest.register --registry 127.0.0.1:2379 --engines 127.0.0.1:9001,127.0.0.1:9002 --model bench --key K

Node and replica records under a lease that is kept alive, a tenant with an API key, and a WatchLoad stream that
reports what the engines' own metrics say four times a second. It starts, stops and heals nothing: engines that come
and go need the real agent. Waits for a registry that still starts. Prints `registered` when the records are there; ends
with SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing

import msgspec

from control.errors import Failed
from control.registry_server import wait_ready
from loadtest.client import Client
from loadtest.voice import Voice, access, speaking
from wire.connect import RegistrySettings, connect
from wire.records import ModelState, Node, Record, Replica, encode, key
from wire.registry import Registry
from wire.v1 import node_pb2

LEASE_TTL_S = 10
REPORT_S = 0.25
REGISTRY_LIMIT_S = 30.0
"""For a registry that is started beside it."""
_GAUGE = re.compile(rb"^vllm:num_requests_(running|waiting)(?:\{[^}]*\})? ([0-9.e+]+)", re.MULTILINE)


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be registered."""

    engines: tuple[str, ...]
    model: str
    node: str = "loadtest"
    region: str = "local"
    api_key: str = ""
    token_ids: bool = False
    """The engines return and take token ids, as vLLM does."""


def records(enrolment: Enrolment, *, agent: str, started_unix_ns: int) -> list[Record]:
    """The leased records of one node with a ready replica per engine."""
    node = Node(
        node=enrolment.node,
        region=enrolment.region,
        address=agent,
        device_class="loadtest",
        started_unix_ns=started_unix_ns,
    )
    replicas = [
        Replica(
            replica=replica_id(enrolment, number),
            node=enrolment.node,
            region=enrolment.region,
            model=enrolment.model,
            address=engine,
            state=ModelState.READY,
            generation=1,
            device_class="loadtest",
            max_num_seqs=20_000,
            token_ids=enrolment.token_ids,
        )
        for number, engine in enumerate(enrolment.engines)
    ]
    return [node, *replicas]


def replica_id(enrolment: Enrolment, number: int) -> str:
    return f"{enrolment.node}.{number}"


@asynccontextmanager
async def registered(registry: Registry, enrolment: Enrolment) -> AsyncIterator[None]:
    """Registered, and reported on, for as long as the context lasts."""
    scrapes = Scrapes(enrolment)
    voice = Voice(enrolment.node, scrapes.loads, every_s=REPORT_S)
    with closing(scrapes):
        async with speaking(voice) as agent, asyncio.TaskGroup() as group:
            lease = await registry.grant(LEASE_TTL_S)
            for record in access(enrolment.api_key):
                await registry.put(key(record), encode(record))
            for record in records(enrolment, agent=agent, started_unix_ns=time.time_ns()):
                await registry.put(key(record), encode(record), lease=lease)
            keeper = group.create_task(registry.keep_alive(lease, LEASE_TTL_S))
            try:
                yield
            finally:
                keeper.cancel()
                await registry.revoke(lease)


class Scrapes:
    """What the engines' own metrics say. What was sent before they were read counts as contained in them."""

    def __init__(self, enrolment: Enrolment) -> None:
        self._enrolment = enrolment
        self._engines = [Client(*_host_port(engine)) for engine in enrolment.engines]

    async def loads(self, sent: Mapping[str, int]) -> list[node_pb2.ReplicaLoad]:
        return [await self._load(number, engine, sent) for number, engine in enumerate(self._engines)]

    async def _load(self, number: int, engine: Client, sent: Mapping[str, int]) -> node_pb2.ReplicaLoad:
        replica = replica_id(self._enrolment, number)
        page = (await engine.get("/metrics")).text()
        gauges = {name: round(float(value)) for name, value in _GAUGE.findall(page)}
        return node_pb2.ReplicaLoad(
            replica=replica,
            generation=1,
            state=node_pb2.READY,
            running=gauges.get(b"running", 0),
            waiting=gauges.get(b"waiting", 0),
            waiting_uncached_tokens=-1.0,
            seen=sent.get(replica, 0),
        )

    def close(self) -> None:
        for engine in self._engines:
            engine.close()


async def run(registry: str, enrolment: Enrolment, *, wait_s: float = REGISTRY_LIMIT_S) -> None:
    """Until cancelled. Raises Failed when the registry does not answer within `wait_s`."""
    await wait_ready(registry, wait_s)
    store = connect(RegistrySettings(endpoints=(registry,), timeout_s=10.0))
    try:
        async with registered(store, enrolment):
            print("registered", flush=True)
            await asyncio.Event().wait()
    finally:
        await store.close()


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.register", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--registry", required=True, help="host:port")
    parser.add_argument("--engines", required=True, help="host:port of each engine, comma separated")
    parser.add_argument("--model", required=True)
    parser.add_argument("--node", default="loadtest")
    parser.add_argument("--region", default="local")
    parser.add_argument("--key", default="", help="API key to create")
    parser.add_argument("--token-ids", action="store_true", help="the engines return and take token ids, as vLLM does")
    parser.add_argument("--wait", type=float, default=REGISTRY_LIMIT_S, metavar="SECONDS", help="for the registry")
    args = parser.parse_args(argv)
    enrolment = Enrolment(
        engines=tuple(args.engines.split(",")),
        model=args.model,
        node=args.node,
        region=args.region,
        api_key=args.key,
        token_ids=args.token_ids,
    )
    try:
        asyncio.run(run(args.registry, enrolment, wait_s=args.wait))
    except Failed as error:
        print(f"register: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

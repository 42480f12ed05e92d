"""Puts given engines into a registry, as their node agent would: for measurements that need a router but no agents.

    python -m loadtest.register --registry 127.0.0.1:2379 --engines 127.0.0.1:9001,127.0.0.1:9002 --model bench --key K

Node and replica records under a lease that is kept alive, a tenant with an API key, and a WatchLoad stream that
reports what the engines' own metrics say four times a second. It starts, stops and heals nothing: engines that come
and go need the real agent. Prints `registered` when the records are there; ends with SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import msgspec

from loadtest.client import Client
from wire.connect import RegistrySettings, connect
from wire.records import ApiKey, ModelState, Node, Record, Replica, Tenant, encode, key
from wire.registry import Registry
from wire.v1 import node_pb2, node_pb2_grpc

LEASE_TTL_S = 10
REPORT_S = 0.25
TENANT = "loadtest"
_GAUGE = re.compile(rb"^vllm:num_requests_(running|waiting)(?:\{[^}]*\})? ([0-9.e+]+)", re.MULTILINE)


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be registered."""

    engines: tuple[str, ...]
    model: str
    node: str = "loadtest"
    region: str = "local"
    api_key: str = ""


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
        )
        for number, engine in enumerate(enrolment.engines)
    ]
    return [node, *replicas]


def replica_id(enrolment: Enrolment, number: int) -> str:
    return f"{enrolment.node}.{number}"


def access(enrolment: Enrolment) -> list[Record]:
    """A tenant who may use everything, and its key; nothing without a key."""
    if not enrolment.api_key:
        return []
    digest = hashlib.sha256(enrolment.api_key.encode()).hexdigest()
    return [Tenant(tenant=TENANT), ApiKey(sha256=digest, tenant=TENANT, label="load tests")]


@asynccontextmanager
async def registered(registry: Registry, enrolment: Enrolment) -> AsyncIterator[None]:
    """Registered, and reported on, for as long as the context lasts."""
    async with _agent(enrolment) as agent, asyncio.TaskGroup() as group:
        lease = await registry.grant(LEASE_TTL_S)
        for record in access(enrolment):
            await registry.put(key(record), encode(record))
        for record in records(enrolment, agent=agent, started_unix_ns=time.time_ns()):
            await registry.put(key(record), encode(record), lease=lease)
        keeper = group.create_task(registry.keep_alive(lease, LEASE_TTL_S))
        try:
            yield
        finally:
            keeper.cancel()
            await registry.revoke(lease)


class Reporter(node_pb2_grpc.NodeAgentServicer):
    """WatchLoad only. What was sent before the metrics were read counts as contained in them."""

    def __init__(self, enrolment: Enrolment) -> None:
        self._enrolment = enrolment
        self._engines = [Client(*_host_port(engine)) for engine in enrolment.engines]
        self._epoch = time.time_ns()

    async def WatchLoad(  # noqa: N802 - gRPC's name
        self, request_iterator: AsyncIterator[node_pb2.SentCounts], context: Any
    ) -> AsyncIterator[node_pb2.LoadReport]:
        sent: dict[str, int] = {}

        async def listen() -> None:
            async for counts in request_iterator:
                sent.update(counts.sent)

        async with asyncio.TaskGroup() as group:
            listener = group.create_task(listen())
            try:
                sequence = 0
                while not listener.done():
                    sequence += 1
                    yield await self._report(dict(sent), sequence)
                    await asyncio.sleep(REPORT_S)
            finally:
                listener.cancel()

    def close(self) -> None:
        for engine in self._engines:
            engine.close()

    async def _report(self, sent: dict[str, int], sequence: int) -> node_pb2.LoadReport:
        report = node_pb2.LoadReport(node=self._enrolment.node, sequence=sequence, epoch=self._epoch)
        for number, engine in enumerate(self._engines):
            replica = replica_id(self._enrolment, number)
            page = (await engine.get("/metrics")).text()
            gauges = {name: round(float(value)) for name, value in _GAUGE.findall(page)}
            report.replicas.add(
                replica=replica,
                generation=1,
                state=node_pb2.READY,
                running=gauges.get(b"running", 0),
                waiting=gauges.get(b"waiting", 0),
                waiting_uncached_tokens=-1.0,
                seen=sent.get(replica, 0),
            )
        return report


@asynccontextmanager
async def _agent(enrolment: Enrolment) -> AsyncIterator[str]:
    """A gRPC server on a free port; gives its address."""
    server = grpc.aio.server()
    serve: Any = node_pb2_grpc.add_NodeAgentServicer_to_server
    reporter = Reporter(enrolment)
    serve(reporter, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0.5)
        reporter.close()


async def run(registry: str, enrolment: Enrolment) -> None:
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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.register", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--registry", required=True, help="host:port")
    parser.add_argument("--engines", required=True, help="host:port of each engine, comma separated")
    parser.add_argument("--model", required=True)
    parser.add_argument("--node", default="loadtest")
    parser.add_argument("--region", default="local")
    parser.add_argument("--key", default="", help="API key to create")
    args = parser.parse_args(argv)
    enrolment = Enrolment(
        engines=tuple(args.engines.split(",")), model=args.model, node=args.node, region=args.region, api_key=args.key
    )
    asyncio.run(run(args.registry, enrolment))


if __name__ == "__main__":
    main()

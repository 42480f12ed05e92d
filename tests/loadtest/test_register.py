"""Engines without an agent are registered as an agent would, and reported on."""

from __future__ import annotations

import asyncio
import hashlib

import grpc.aio
import pytest

from loadtest.processes import free_port
from loadtest.register import Enrolment, main, records, registered
from loadtest.voice import access
from tests.loadtest.server import engine
from wire.memory import MemoryRegistry
from wire.records import ApiKey, ModelState, Node, Replica, Tenant, decode, prefix
from wire.v1 import node_pb2, node_pb2_grpc

ENROLMENT = Enrolment(engines=("127.0.0.1:9001", "127.0.0.1:9002"), model="bench", api_key="sk-1")
LIMIT_S = 20.0


def test_there_is_a_ready_replica_per_engine_on_one_node() -> None:
    node, *replicas = records(ENROLMENT, agent="127.0.0.1:7000", started_unix_ns=1)
    assert isinstance(node, Node)
    assert "127.0.0.1:7000" == node.address
    assert [
        ("loadtest.0", "127.0.0.1:9001", ModelState.READY),
        ("loadtest.1", "127.0.0.1:9002", ModelState.READY),
    ] == [(r.replica, r.address, r.state) for r in replicas if isinstance(r, Replica)]


def test_the_key_is_registered_as_its_hash_only() -> None:
    tenant, key = access(ENROLMENT.api_key)
    assert isinstance(tenant, Tenant)
    assert isinstance(key, ApiKey)
    assert (hashlib.sha256(b"sk-1").hexdigest(), tenant.tenant) == (key.sha256, key.tenant)
    assert "sk-1" not in repr(key)
    assert [] == access("")


def test_a_registry_that_does_not_answer_is_named_and_waited_for_no_longer_than_told(
    capfd: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    what = ("--engines", "127.0.0.1:9001", "--model", "bench")
    assert 1 == main(["--registry", f"127.0.0.1:{port}", "--wait", "0.2", *what])
    assert f"the registry at 127.0.0.1:{port} did not answer within 0.2 s" in capfd.readouterr().err


async def test_records_are_there_while_the_context_lasts_and_reports_count_what_runs() -> None:
    registry = MemoryRegistry()
    async with (
        asyncio.timeout(LIMIT_S),
        engine() as client,
        registered(registry, Enrolment(engines=(f"127.0.0.1:{client.port}",), model="bench")),
    ):
        node = decode(Node, (await registry.list(prefix(Node))).entries[0].value)
        async with grpc.aio.insecure_channel(node.address) as channel:
            watch = node_pb2_grpc.NodeAgentStub(channel).WatchLoad()  # type: ignore[no-untyped-call]
            await watch.write(node_pb2.SentCounts(router_id="r", sent={"loadtest.0": 7}))
            reports = [await watch.read() for _ in range(3)]
            watch.cancel()
    assert [1, 2, 3] == [report.sequence for report in reports]
    assert ["loadtest.0"] == [replica.replica for replica in reports[-1].replicas]
    assert (0, 7) == (reports[-1].replicas[0].running, reports[-1].replicas[0].seen)
    assert () == (await registry.list(prefix(Replica))).entries

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from control import agents
from control.errors import Failed
from wire.v1 import node_pb2 as pb
from wire.v1.node_pb2_grpc import NodeAgentServicer, add_NodeAgentServicer_to_server


class Agent(NodeAgentServicer):  # type: ignore[misc]
    def __init__(self, *progress: pb.Progress, refuse: grpc.StatusCode | None = None) -> None:
        self.progress = progress
        self.refuse = refuse
        self.drains: list[pb.DrainCommand] = []

    async def Drain(  # noqa: N802 - gRPC's name
        self, request: pb.DrainCommand, context: grpc.aio.ServicerContext[pb.DrainCommand, pb.Progress]
    ) -> AsyncIterator[pb.Progress]:
        self.drains.append(request)
        if self.refuse:
            await context.abort(self.refuse, "no replica x on this node")
        for progress in self.progress:
            yield progress


@asynccontextmanager
async def serving(agent: Agent) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_NodeAgentServicer_to_server(agent, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def drained(agent: Agent) -> list[str]:
    phases: list[str] = []
    async with serving(agent) as address:
        call = agents.drain("x", limit_s=5.0, stop=True)
        await agents.command(address, call, on_progress=lambda p: phases.append(p.phase))
    return phases


async def test_progress_is_told_step_by_step_until_it_is_done() -> None:
    agent = Agent(pb.Progress(phase="draining"), pb.Progress(phase="off", done=True))
    assert ["draining", "off"] == await drained(agent)
    assert [pb.DrainCommand(replica="x", limit_s=5.0, stop=True)] == agent.drains


@pytest.mark.parametrize("error", ["it is busy", "x: it is busy"])
async def test_the_agents_own_reason_is_given_once_with_the_replica(error: str) -> None:
    with pytest.raises(Failed, match=r"^x: it is busy$"):
        await drained(Agent(pb.Progress(replica="x", done=True, error=error)))


async def test_an_agent_that_stops_telling_has_not_done_it() -> None:
    with pytest.raises(Failed, match="stopped telling before it was done"):
        await drained(Agent(pb.Progress(phase="draining")))


async def test_a_refusal_is_given_in_the_agents_words() -> None:
    with pytest.raises(Failed, match=r"^no replica x on this node$"):
        await drained(Agent(refuse=grpc.StatusCode.NOT_FOUND))


async def test_an_agent_that_breaks_off_is_named() -> None:
    with pytest.raises(Failed, match="broke off"):
        await drained(Agent(refuse=grpc.StatusCode.INTERNAL))


async def test_an_agent_that_is_not_there_is_waited_for_only_so_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        call = agents.undrain("")
        with pytest.raises(Failed, match="does not answer"):
            await agents.command(address, call, on_progress=lambda _: None, connect_limit_s=0.2)

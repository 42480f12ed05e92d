"""What is sent again after a failure, and what is not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from wire.etcd import EtcdRegistry
from wire.etcd_calls import Calls
from wire.etcd_methods import AUTHENTICATE, LEASE_GRANT, PUT, RANGE, TXN, Method
from wire.etcd_v3 import etcd_pb2 as pb
from wire.registry import LeaseLost, RegistryError, RegistryUnavailable

TIMEOUT_S = 3.0


class Scripted:
    """A member that fails as told, each method's first answers in order, and then answers; it counts what it got."""

    def __init__(self, **failures: list[tuple[grpc.StatusCode, str]]) -> None:
        self.asked: list[str] = []
        self.tokens: list[str] = []
        self.silent = ""
        """A method that is never answered."""
        self._failures = failures

    def handler(self, method: Method[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        name = method.path.rsplit("/", 1)[1]

        async def answer(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            self.asked.append(name)
            self.tokens += [str(value) for key, value in context.invocation_metadata() or () if key == "token"]
            if name == self.silent:
                await asyncio.Event().wait()
            if self._failures.get(name):
                await context.abort(*self._failures[name].pop(0))
            if method is AUTHENTICATE:
                return pb.AuthenticateResponse(token=f"token {self.asked.count(name)}")
            return pb.TxnResponse(succeeded=True) if method is TXN else method.answer()

        return grpc.unary_unary_rpc_method_handler(answer, method.request.FromString, method.answer.SerializeToString)


class Handlers(grpc.GenericRpcHandler):
    def __init__(self, member: Scripted) -> None:
        self._found = {m.path: member.handler(m) for m in (AUTHENTICATE, LEASE_GRANT, PUT, RANGE, TXN)}

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._found.get(call.method)


@contextlib.asynccontextmanager
async def registry_on(*members: Scripted, user: str = "") -> AsyncIterator[EtcdRegistry]:
    servers, targets = [], []
    for member in members:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Handlers(member),))
        targets.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    registry = EtcdRegistry(Calls(targets, user=user, password=lambda: "secret", timeout_s=TIMEOUT_S))
    try:
        yield registry
    finally:
        await registry.close()
        for server in servers:
            await server.stop(0)


AWAY = (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out")
EXPIRED = (grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token")


async def test_a_read_goes_on_to_the_next_endpoint_and_stays_there() -> None:
    first, second = Scripted(Range=[AWAY]), Scripted()
    async with registry_on(first, second) as registry:
        await registry.get("a")
        await registry.get("a")
    assert (["Range"], ["Range", "Range"]) == (first.asked, second.asked)


@pytest.mark.parametrize(
    ("method", "lease", "times"), [("Put", 0, 1), ("Put", 7, 2), ("Txn", 0, 1), ("LeaseGrant", 0, 2)]
)
async def test_what_may_have_been_done_is_sent_again_only_where_twice_is_harmless(
    method: str, lease: int, times: int
) -> None:
    member = Scripted(**{method: [AWAY]})
    async with registry_on(member) as registry:
        with contextlib.suppress(RegistryUnavailable):
            match method:
                case "Put":
                    await registry.put("a", b"1", lease=lease)
                case "Txn":
                    await registry.put_if("a", b"1", revision=0)
                case _:
                    await registry.grant(60)
    assert times == len(member.asked)


async def test_an_expired_token_is_renewed_also_for_what_is_sent_once() -> None:
    member = Scripted(Txn=[EXPIRED])
    async with registry_on(member, user="router") as registry:
        assert await registry.put_if("a", b"1", revision=0) is not None
    assert ["Authenticate", "Txn", "Authenticate", "Txn"] == member.asked
    assert ["token 1", "token 2"] == member.tokens


async def test_many_calls_at_once_log_in_once() -> None:
    member = Scripted()
    async with registry_on(member, user="router") as registry:
        await asyncio.gather(*(registry.get("a") for _ in range(10)))
    assert 1 == member.asked.count("Authenticate")


async def test_an_etcd_without_users_takes_a_client_that_would_log_in() -> None:
    member = Scripted(Authenticate=[(grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")])
    async with registry_on(member, user="router") as registry:
        await registry.get("a")
    assert [] == member.tokens


async def test_calls_that_wait_for_one_login_keep_their_own_time_limits() -> None:
    member = Scripted()
    member.silent = "Authenticate"
    async with registry_on(member, user="router") as registry, asyncio.timeout(4 * TIMEOUT_S):
        endings = await asyncio.gather(*(registry.get("a") for _ in range(20)), return_exceptions=True)
    assert [RegistryUnavailable] * 20 == [type(ending) for ending in endings]


async def test_a_refusal_is_raised_at_once() -> None:
    member = Scripted(Range=[(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")] * 2)
    async with registry_on(member) as registry:
        with pytest.raises(RegistryError, match="permission denied"):
            await registry.get("a")
    assert ["Range"] == member.asked


async def test_a_lease_is_fought_for_until_its_time_is_over_even_when_the_answer_is_no() -> None:
    wrong = (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")
    member = Scripted(Authenticate=[wrong] * 100)
    async with registry_on(member, user="router") as registry, asyncio.timeout(30):
        with pytest.raises(LeaseLost):
            await registry.keep_alive(7, 1)
    assert len(member.asked) > 1

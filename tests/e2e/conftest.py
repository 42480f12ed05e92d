"""The same clients against three servers: the router over simulated engines (in the default suite), the router over
real vLLM, and that vLLM itself (both marked `vllm`)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from tests.e2e.stack import CHAT_MODEL, EMBED_MODEL, Stack, simulated_models, vllm_models
from tests.vllm.servers import REMEDY, available

TIME_LIMIT_S = 400
REAL = (pytest.mark.vllm, pytest.mark.timeout(TIME_LIMIT_S))


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a client connects, and what it may expect there."""

    base_url: str
    """With `/v1`, as an SDK wants it."""
    embed_base_url: str
    key: str
    chat_model: str = CHAT_MODEL
    embed_model: str = EMBED_MODEL
    routed: bool
    real: bool
    """Real vLLM answers."""


@pytest.fixture(scope="session")
def simulated_stack() -> Iterator[Stack]:
    stack = Stack(simulated_models(), start_limit_s=60).start()
    yield stack
    stack.close()


@pytest.fixture(scope="session")
def vllm_stack() -> Iterator[Stack]:
    if not available():
        pytest.skip(REMEDY)
    stack = Stack(vllm_models(), start_limit_s=240).start()
    yield stack
    stack.close()


@pytest.fixture
def router_url(vllm_stack: Stack) -> str:
    """The router over real vLLM."""
    return vllm_stack.router_url


@pytest.fixture(
    params=["simulated", pytest.param("vllm-direct", marks=REAL), pytest.param("vllm-routed", marks=REAL)],
)
def target(request: pytest.FixtureRequest) -> Target:
    kind: str = request.param
    stack: Stack = request.getfixturevalue("simulated_stack" if kind == "simulated" else "vllm_stack")
    if kind == "vllm-direct":
        chat, embed = stack.replicas(CHAT_MODEL)[0], stack.replicas(EMBED_MODEL)[0]
        return Target(
            base_url=f"http://{chat.address}/v1",
            embed_base_url=f"http://{embed.address}/v1",
            key="anything",
            routed=False,
            real=True,
        )
    url = f"{stack.router_url}/v1"
    return Target(base_url=url, embed_base_url=url, key=stack.key, routed=True, real=kind == "vllm-routed")

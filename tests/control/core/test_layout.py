import itertools
from pathlib import PurePosixPath
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from control.core import layout
from control.core.layout import Vllm, Wish

WISH = Wish(
    root=PurePosixPath("/data"),
    host="127.0.0.1",
    port=8000,
    region="local",
    nodes=2,
    chat_replicas=3,
    drain_limit_s=10.0,
    orphan_grace_s=3.0,
    otlp_endpoint="",
    vllm=None,
)
TINY = Vllm(directory=PurePosixPath("/v"), gpu=False, model="tiny", path="/data/models/tiny", built_here=True)


def made(**changes: Any) -> layout.Layout:
    return layout.make(msgspec.structs.replace(WISH, **changes), itertools.count(9000))


@given(st.integers(1, 256), st.integers(1, 32))
def test_replicas_are_spread_as_evenly_as_can_be(replicas: int, nodes: int) -> None:
    shares = layout.shares(replicas, nodes)
    assert (replicas, nodes) == (sum(shares), len(shares))
    assert 1 >= max(shares) - min(shares)


def test_every_process_is_told_where_the_registry_is() -> None:
    plan = made()
    for process in (*plan.agents, plan.router, plan.control):
        (settings,) = process.settings.values()
        assert [plan.registry] == settings["registry"]["endpoints"]


def test_no_port_is_given_twice() -> None:
    plan = made(nodes=5)
    given = [plan.registry_port, plan.registry_peer_port, plan.control.settings["control"]["port"], 8000]
    given += [agent.settings["node_agent"]["port"] for agent in plan.agents]
    assert len(set(given)) == len(given)


def test_simulated_nodes_serve_chat_and_embeddings_and_none_is_idle() -> None:
    plan = made(nodes=4)
    assert {"node-1": 2, "node-2": 2, "node-3": 2, "node-4": 1} == plan.replicas
    assert "sim-chat" == plan.model


def test_real_nodes_serve_the_tiny_model_with_vllms_own_python() -> None:
    plan = made(vllm=TINY, chat_replicas=2)
    agent = plan.agents[0].settings["node_agent"]
    assert "/v/bin/python" == agent["vllm_python"]
    (model,) = agent["models"]
    assert ("tiny", "vllm", "/data/models/tiny", True, 1) == tuple(
        model[name] for name in ("name", "engine", "path", "cpu", "replicas")
    )
    assert {"node-1": 1, "node-2": 1} == plan.replicas


def test_a_router_that_listens_everywhere_is_asked_on_loopback() -> None:
    assert "http://127.0.0.1:8000" == made(host="0.0.0.0").router.url


def test_a_process_starts_with_its_settings_file_and_is_safe_from_the_current_directory() -> None:
    argv = layout.argv(made().router, python="/py", config="/c.toml")
    assert ["/py", "-P", "-m", "router", "--config", "/c.toml"] == argv

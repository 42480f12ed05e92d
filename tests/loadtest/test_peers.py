"""How each peer is started: its engines and port are in what it reads, and what is missing is said with a remedy."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from loadtest.peers import contestant, roster
from loadtest.peers.contestant import Site

ENGINES = ("127.0.0.1:9001", "127.0.0.1:9002")


def _said(name: str, at: Path) -> str:
    site = Site(port=8123, engines=ENGINES, model="bench", directory=at)
    launch = roster.named([name])[0].launch(site)
    files = "".join(path.read_text() for path in at.iterdir() if path.is_file())
    words = launch.router.argv if launch.router is not None else ()
    return " ".join([str(launch.port), *words, files, *(word for helper in launch.helpers for word in helper.argv)])


@pytest.mark.parametrize("name", [one.name for one in roster.ALL if one.name != "direct"])
def test_a_contestant_is_told_its_port_and_both_engines(name: str, tmp_path: Path) -> None:
    said = _said(name, tmp_path)
    assert "8123" in said
    assert said.count("9001") >= 1
    assert said.count("9002") >= 1


def test_without_a_router_the_first_engine_is_asked(tmp_path: Path) -> None:
    site = Site(port=8123, engines=ENGINES, model="bench", directory=tmp_path)
    launch = roster.named(["direct"])[0].launch(site)
    assert (None, 9001) == (launch.router, launch.port)


def test_proxies_do_not_gather_small_writes(tmp_path: Path) -> None:
    assert "proxy_buffering off" in _said("nginx", tmp_path)
    assert "option http-no-delay" in _said("haproxy", tmp_path)


def test_envoy_gets_json_it_can_read(tmp_path: Path) -> None:
    _said("envoy", tmp_path)
    config = msgspec.json.decode((tmp_path / "envoy.json").read_bytes())
    assert 8123 == config["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"]


def test_a_program_that_is_not_there_is_named_with_the_remedy() -> None:
    assert "python -m loadtest.peers install" in contestant.lacks("routers", "no-such-router")()

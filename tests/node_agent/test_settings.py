"""A mistake in the settings is a sentence at the start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from node_agent.plan import plans
from node_agent.settings import SECTION, EngineKind, ModelConfig, NodeAgentSettings, StartAs
from wire.settings import SettingsError, read

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "node_agent" / "sample.toml"


def settings(**given: Any) -> NodeAgentSettings:
    return NodeAgentSettings(**{"node": "n1", **given})


def test_the_sample_is_valid_and_says_what_it_shows() -> None:
    sample, origins = read(NodeAgentSettings, section=SECTION, flags={"config": str(SAMPLE)}, env={})
    assert ["gpu-1.llama-3.1-8b.0", "gpu-1.bge-m3.0"] == [plan.replica for plan in plans(sample)]
    assert "file" == origins["registry.endpoints"]
    assert StartAs.ON_DEMAND is sample.models[1].start


def test_print_settings_shows_each_with_its_origin() -> None:
    command = [sys.executable, "-m", "node_agent", "--config", str(SAMPLE), "--print-settings", "--port", "7171"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "SWITCHYARD_NODE_AGENT_LEASE_TTL_S": "20"}
    shown = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout
    lines = {line.split(" = ")[0]: line for line in shown.splitlines() if " = " in line}
    assert lines["port"].startswith("port = 7171")
    assert lines["port"].endswith("# --port")
    assert lines["lease_ttl_s"].endswith("# SWITCHYARD_NODE_AGENT_LEASE_TTL_S")
    assert lines["region"].endswith("# file")


def test_a_wrong_file_ends_with_a_sentence_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('[node_agent]\nport = "high"\n')
    command = [sys.executable, "-m", "node_agent", "--config", str(tmp_path / "bad.toml")]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert 2 == ended.returncode
    assert ended.stderr.startswith("switchyard node-agent: ")
    assert "port" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"engine_port_first": 8100}, "give both"),
        ({"engine_port_first": 8100, "engine_port_last": 8099}, "the last not below"),
        ({"models": (ModelConfig(name="m"), ModelConfig(name="m"))}, "named twice: m"),
        ({"models": (ModelConfig(name="m", sleep=True),), "advertise_host": "10.0.0.1"}, "engine_admin_on_network"),
        ({"models": (ModelConfig(name="m", replicas=3),), "slots": 2}, "need 3 slots, the host has 2"),
        ({"models": (ModelConfig(name="m", memory_gib=90),), "gpu_memory_gib": 80}, "need 90 GiB, the host has 80"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**given)


def test_a_sleeper_must_be_able_to_sleep() -> None:
    with pytest.raises(ValueError, match="needs sleep = true"):
        ModelConfig(name="m", start=StartAs.SLEEPING)


def test_sleep_is_allowed_on_loopback_and_where_somebody_has_said_so() -> None:
    sleeper = (ModelConfig(name="m", sleep=True),)
    assert "127.0.0.1" == settings(models=sleeper).scrape_host
    assert settings(models=sleeper, advertise_host="10.0.0.1", engine_admin_on_network=True).models


def test_models_that_start_later_need_no_room_at_the_start() -> None:
    later = ModelConfig(name="m", memory_gib=90, start=StartAs.ON_DEMAND)
    assert settings(models=(later,), gpu_memory_gib=80).models


def test_an_engine_bound_to_all_addresses_is_scraped_on_loopback() -> None:
    everywhere = settings(advertise_host="10.0.0.1", engine_host="0.0.0.0")
    assert ("0.0.0.0", "127.0.0.1") == (everywhere.bind_host, everywhere.scrape_host)


def test_the_digest_changes_with_what_an_engine_is_and_not_with_how_many_there_are() -> None:
    model = ModelConfig(name="m", args=("--a",))
    assert model.digest == msgspec.structs.replace(model, replicas=3, start=StartAs.ON_DEMAND).digest
    assert model.digest != msgspec.structs.replace(model, args=("--b",)).digest
    assert model.digest != msgspec.structs.replace(model, engine=EngineKind.SIMULATED).digest


def test_replicas_are_named_without_slashes() -> None:
    models = (ModelConfig(name="org/model", replicas=2),)
    assert ["n1.org-model.0", "n1.org-model.1"] == [plan.replica for plan in plans(settings(models=models))]


def test_models_whose_names_become_one_are_refused() -> None:
    with pytest.raises(SettingsError, match="too alike"):
        plans(settings(models=(ModelConfig(name="a/b"), ModelConfig(name="a-b"))))

"""How engines are started: command lines and environments, without starting anything."""

from __future__ import annotations

from pathlib import Path

from node_agent.engines.base import Launch, StartUp, progress
from node_agent.engines.simulated_engine import SimulatedEngine
from node_agent.engines.vllm import VllmEngine
from node_agent.settings import ModelConfig
from wire.records import Task

OURS = {"PATH": "/bin", "PYTHONPATH": "/ours", "VIRTUAL_ENV": "/ours/.venv", "PYTHONDONTWRITEBYTECODE": "1"}


def vllm(model: ModelConfig) -> Launch:
    return VllmEngine("/opt/vllm/bin/python").launch(model, host="10.0.0.1", port=8100, base_env=OURS)


def value(launch: Launch, flag: str) -> str:
    return launch.argv[launch.argv.index(flag) + 1]


def test_vllm_is_started_from_its_own_environment_and_sees_nothing_of_ours() -> None:
    launch = vllm(ModelConfig(name="m", path="org/m"))
    assert ("/opt/vllm/bin/python", "-m") == launch.argv[:2]
    assert "org/m" in launch.argv
    assert ("m", "10.0.0.1", "8100") == tuple(value(launch, f) for f in ("--served-model-name", "--host", "--port"))
    assert "/bin" == launch.env["PATH"]
    assert not OURS.keys() - {"PATH"} & launch.env.keys()


def test_vllm_drains_by_itself_for_the_time_the_model_says() -> None:
    assert "45" == value(vllm(ModelConfig(name="m", drain_s=45)), "--shutdown-timeout")


def test_development_endpoints_are_open_only_for_models_that_sleep() -> None:
    awake, sleeper = vllm(ModelConfig(name="m")), vllm(ModelConfig(name="m", sleep=True))
    assert "VLLM_SERVER_DEV_MODE" not in awake.env
    assert "--enable-sleep-mode" not in awake.argv
    assert "1" == sleeper.env["VLLM_SERVER_DEV_MODE"]
    assert "--enable-sleep-mode" in sleeper.argv


def test_the_cpu_build_gets_what_it_needs_and_not_what_it_refuses() -> None:
    launch = vllm(ModelConfig(name="m", cpu=True, sleep=True))
    assert "0" == launch.env["VLLM_ENABLE_V1_MULTIPROCESSING"]
    assert "64M" == value(launch, "--kv-cache-memory-bytes")
    assert "--enable-sleep-mode" not in launch.argv


def test_a_pooling_server_is_told_so() -> None:
    launch = vllm(ModelConfig(name="m", task=Task.EMBED))
    assert "pooling" == value(launch, "--runner")


def test_adapters_are_loaded_at_the_start() -> None:
    launch = vllm(ModelConfig(name="m", adapters={"a": "/a", "b": "/b"}, max_loras=2))
    at = launch.argv.index("--lora-modules")
    assert ("a=/a", "b=/b") == launch.argv[at + 1 : at + 3]
    assert "2" == value(launch, "--max-loras")


def test_the_operators_arguments_and_environment_have_the_last_word() -> None:
    launch = vllm(ModelConfig(name="m", cpu=True, args=("--dtype", "bfloat16"), env={"OMP_NUM_THREADS": "8"}))
    assert ("--dtype", "bfloat16") == launch.argv[-2:]
    assert "8" == launch.env["OMP_NUM_THREADS"]


def test_a_model_in_a_folder_is_on_disk_and_needs_no_network(tmp_path: Path) -> None:
    model = ModelConfig(name="m", path=str(tmp_path))
    assert VllmEngine("python").on_disk(model)
    assert "1" == vllm(model).env["HF_HUB_OFFLINE"]
    assert not VllmEngine("python").on_disk(ModelConfig(name="m", path=str(tmp_path / "none")))


def test_limits_reach_either_engine_and_zero_is_left_to_it() -> None:
    limited = ModelConfig(name="m", max_num_seqs=4, max_model_len=100, max_batch_tokens=512)
    simulated = SimulatedEngine().launch(limited, host="127.0.0.1", port=1, base_env={})
    for launch in (vllm(limited), simulated):
        flags = ("--max-num-seqs", "--max-model-len", "--max-num-batched-tokens")
        assert ("4", "100", "512") == tuple(value(launch, flag) for flag in flags)
    assert "--max-num-seqs" not in vllm(ModelConfig(name="m")).argv


def test_start_up_is_told_by_the_furthest_line_of_the_log() -> None:
    steps = VllmEngine("python").steps
    assert StartUp() == progress(steps, b"INFO nothing yet")
    log = b"Resolved architecture: Qwen3\nStarting to load model x\nLoading safetensors 0%"
    assert StartUp("loading weights", 0.7) == progress(steps, log)

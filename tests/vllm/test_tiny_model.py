"""The tiny model is the same on every run, and appears whole or not at all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.vllm.servers import BUILDER, ENVIRONMENT, REMEDY, available, environment

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(200)]


def build(out: Path, *more: str) -> None:
    if not available():
        pytest.skip(REMEDY)
    command = [str(ENVIRONMENT / "bin" / "python"), str(BUILDER), str(out), *more]
    subprocess.run(command, check=True, capture_output=True, env=environment(), timeout=120)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_two_runs_write_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    build(tmp_path / "a", "--lora", str(tmp_path / "lora-a"))
    build(tmp_path / "b", "--lora", str(tmp_path / "lora-b"))
    build(tmp_path / "c", "--seed", "1")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "lora-a") == contents(tmp_path / "lora-b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")
    assert {"a", "b", "c", "lora-a", "lora-b"} == {folder.name for folder in tmp_path.iterdir()}


def test_a_model_that_is_there_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "left-over").touch()
    build(tmp_path / "model")
    assert not (tmp_path / "model" / "left-over").exists()
    assert (tmp_path / "model" / "config.json").exists()

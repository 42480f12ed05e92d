import os
import sys
from pathlib import Path

import pytest

from control.errors import Failed
from control.prepare import Step, steps, wish
from control.up_settings import Engine, UpSettings


def step(tmp_path: Path, code: str) -> Step:
    return Step("step", [sys.executable, "-c", code], tmp_path / "step.log", os.environ, "it could not be done")


async def test_the_last_line_of_output_is_the_progress(tmp_path: Path) -> None:
    heard: list[str] = []
    code = "import time; print('downloading', flush=True); time.sleep(0.5); print('installing'); print()"
    await step(tmp_path, code).run(heard.append)
    assert "downloading" in heard
    assert "installing" == heard[-1]


async def test_a_step_that_fails_is_told_with_its_last_line_and_its_log(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"it could not be done: no space left \(its log is .*step\.log\)"):
        await step(tmp_path, "import sys; print('no space left'); sys.exit(1)").run(lambda _: None)


def test_the_tiny_model_is_made_once_with_vllms_python(tmp_path: Path) -> None:
    vllm = wish(UpSettings(engine=Engine.VLLM, vllm_dir=str(tmp_path / "v")), tmp_path)
    install, tiny = steps(vllm, logs=tmp_path, env={})
    assert ["-m", "node_agent.engines.install", "--dir", str(tmp_path / "v")] == list(install.command[2:6])
    assert [str(tmp_path / "v/bin/python"), str(tmp_path / "models/tiny")] == [tiny.command[0], tiny.command[-1]]
    assert Path(tiny.command[1]).is_file()
    (tmp_path / "models/tiny").mkdir(parents=True)
    assert ["vllm"] == [step.name for step in steps(vllm, logs=tmp_path, env={})]


def test_a_model_that_was_named_is_not_made_here(tmp_path: Path) -> None:
    vllm = wish(UpSettings(engine=Engine.VLLM, model="org/some-model"), tmp_path)
    assert ("some-model", "org/some-model") == (vllm.model, vllm.path)
    assert ["vllm"] == [step.name for step in steps(vllm, logs=tmp_path, env={})]

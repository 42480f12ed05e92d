import argparse
from pathlib import Path

import pytest

from control.commands.chat import Target, target
from control.errors import Failed
from control.rundir import Run, RunDir

URL = "http://127.0.0.1:8000"


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path)
    found.create()
    found.keep_key("sk-sy-here")
    found.tell(
        Run(pid=1, region="local", router_url=URL, control_url="", registry_endpoints=("127.0.0.1:1",), models=("m",))
    )
    return found


def args(run_dir: RunDir, *, base_url: str = "", api_key: str = "") -> argparse.Namespace:
    return argparse.Namespace(base_url=base_url, api_key=api_key, data_dir=str(run_dir.path))


def test_the_up_that_runs_here_is_asked_with_its_own_key(run_dir: RunDir) -> None:
    with run_dir.held():
        assert Target(f"{URL}/v1", "sk-sy-here") == target(args(run_dir), {"OPENAI_API_KEY": "sk-another-service"})


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_up_that_runs_here(run_dir: RunDir) -> None:
    env = {"OPENAI_BASE_URL": "http://env/v1", "OPENAI_API_KEY": "sk-env"}
    with run_dir.held():
        assert Target("http://env/v1", "sk-env") == target(args(run_dir), env)
        assert Target("http://flag/v1", "sk-flag") == target(
            args(run_dir, base_url="http://flag/v1", api_key="sk-flag"), env
        )
        assert Target(f"{URL}/v1", "sk-flag") == target(args(run_dir, api_key="sk-flag"), {})


def test_a_router_that_was_named_gets_the_key_of_the_environment_unless_it_is_the_one_that_runs_here(
    run_dir: RunDir,
) -> None:
    with run_dir.held():
        assert Target(f"{URL}/v1", "sk-sy-here") == target(args(run_dir, base_url=f"{URL}/v1"), {"OPENAI_API_KEY": "x"})
        assert Target("http://other/v1", "sk-env") == target(
            args(run_dir, base_url="http://other/v1"), {"OPENAI_API_KEY": "sk-env"}
        )


def test_without_a_router_there_is_a_sentence(run_dir: RunDir) -> None:
    with pytest.raises(Failed, match=r"no `switchyard up` runs in .*--base-url"):
        target(args(run_dir), {})

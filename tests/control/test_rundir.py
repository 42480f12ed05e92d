import stat
from pathlib import Path

import pytest

from control.errors import Failed
from control.rundir import Run, RunDir, taken

RUN = Run(
    pid=1,
    region="local",
    router_url="http://127.0.0.1:8000",
    control_url="",
    registry_endpoints=("127.0.0.1:2379",),
    models=("m",),
)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path / "data")
    found.create()
    return found


def test_a_run_is_known_to_others_while_it_holds_its_lock_and_not_after(run_dir: RunDir) -> None:
    with run_dir.held():
        run_dir.tell(RUN)
        assert RUN == RunDir(run_dir.path).running()
    assert RunDir(run_dir.path).running() is None


def test_what_a_killed_run_left_is_not_taken_for_a_run(run_dir: RunDir) -> None:
    run_dir.tell(RUN)
    assert run_dir.running() is None


def test_a_second_run_is_told_who_runs_and_how_to_go_on(run_dir: RunDir) -> None:
    with run_dir.held():
        run_dir.tell(RUN)
        with (
            pytest.raises(Failed, match=r"already running in .*process 1, .*8000.*Ctrl-C or `kill 1`, or .*--data-dir"),
            RunDir(run_dir.path).held(),
        ):
            pass


def test_a_second_run_while_the_first_is_starting_is_told_to_wait(run_dir: RunDir) -> None:
    with run_dir.held(), pytest.raises(Failed, match="is starting"), RunDir(run_dir.path).held():
        pass


def test_only_one_holds_the_lock_of_the_children(run_dir: RunDir) -> None:
    with run_dir.children_lock() as first, RunDir(run_dir.path).children_lock() as second:
        assert taken(first)
        assert not taken(second)


def test_the_key_is_for_its_owner_alone(run_dir: RunDir) -> None:
    assert "" == run_dir.key()
    run_dir.keep_key("sk-sy-x")
    assert "sk-sy-x" == run_dir.key()
    (path,) = [p for p in run_dir.path.iterdir() if p.name == "development-key"]
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_a_directory_that_is_not_there_has_no_run(tmp_path: Path) -> None:
    assert RunDir(tmp_path / "nothing").running() is None
    assert not (tmp_path / "nothing").exists()

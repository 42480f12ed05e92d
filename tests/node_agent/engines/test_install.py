"""Making the engine's environment, with a stand-in for the base Python: it logs what it is asked and makes what a real
one would make, in milliseconds and without a network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from node_agent.engines.install import REQUIREMENTS, STAMP, InstallError, Plan, install, main, require_space

STAND_IN = """#!{python}
import pathlib, shutil, sys
root, version, broken = pathlib.Path({root!r}), {version!r}, {broken!r}
arguments = sys.argv[1:]
with (root / "log").open("a") as log:
    print(*arguments, file=log)
if arguments[:2] == ["-m", "venv"]:
    target = pathlib.Path(arguments[-1])
    shutil.rmtree(target / "bin", ignore_errors=True)
    (target / "bin").mkdir()
    (target / "site").mkdir(exist_ok=True)
    (target / "pyvenv.cfg").touch()
    for name in ("python", "vllm"):
        shutil.copy(sys.argv[0], target / "bin" / name)
elif arguments[:2] == ["-m", "pip"]:
    if broken and any(broken in argument for argument in arguments):
        sys.exit("ERROR: No matching distribution found for " + broken)
elif arguments[:1] == ["-c"]:
    print(version if "version_info" in arguments[1] else pathlib.Path(sys.argv[0]).parents[1] / "site")
else:
    print("0.32.0+cpu")
"""


class Place:
    """A base Python and a target directory of one test."""

    def __init__(self, root: Path, *, version: str = "3 11", broken: str = "") -> None:
        self.root = root
        self.plan = Plan(root / "env", root / "python", "cpu")
        self.plan.base_python.write_text(
            STAND_IN.format(python=sys.executable, root=str(root), version=version, broken=broken)
        )
        self.plan.base_python.chmod(0o755)

    def log(self) -> str:
        log = self.root / "log"
        return log.read_text() if log.exists() else ""


def test_an_environment_is_made_once(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert install(place.plan)
    before = place.log()
    assert not install(place.plan)
    assert before == place.log()


def test_all_pins_are_installed_without_their_dependencies(tmp_path: Path) -> None:
    place = Place(tmp_path)
    install(place.plan)
    installs = [line for line in place.log().splitlines() if "pip install" in line]
    pins = {line for line in REQUIREMENTS.read_text().splitlines() if "==" in line and line[0] != "#"}
    assert all("--no-deps" in line for line in installs)
    assert pins == {word for line in installs for word in line.split() if "==" in word}


def test_the_vllm_command_finds_metadata_that_says_cpu(tmp_path: Path) -> None:
    place = Place(tmp_path)
    install(place.plan)
    (metadata,) = (place.plan.directory / "site").glob("vllm-*.dist-info/METADATA")
    assert "Name: vllm\nVersion: 0.32.0+cpu\n" in metadata.read_text()


@pytest.mark.parametrize("stamp", [None, "", "{}", '{"fingerprint": "another"}', "[]"])
def test_a_half_made_or_outdated_environment_is_made_again(tmp_path: Path, stamp: str | None) -> None:
    place = Place(tmp_path)
    install(place.plan)
    (place.plan.directory / STAMP).unlink()
    if stamp is not None:
        (place.plan.directory / STAMP).write_text(stamp)
    assert install(place.plan)
    assert place.plan.is_met()


def test_a_failed_install_leaves_no_stamp_and_says_what_pip_said(tmp_path: Path) -> None:
    place = Place(tmp_path, broken="numpy")
    with pytest.raises(InstallError, match="No matching distribution found for numpy"):
        install(place.plan)
    assert not place.plan.is_met()


def test_where_the_cpu_build_of_torch_is_not_to_be_found_the_common_one_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path, broken="+cpu")
    assert install(place.plan)
    assert "torch==2.13.0 is taken" in capsys.readouterr().out
    (common,) = (line for line in place.log().splitlines() if line.endswith(" torch==2.13.0"))
    assert "--no-deps" not in common
    assert "--constraint" in common


def test_the_wrong_python_is_refused_with_the_remedy(tmp_path: Path) -> None:
    place = Place(tmp_path, version="3 13")
    with pytest.raises(InstallError, match=r"is Python 3\.13; the CPU pins need 3\.11: pass --python"):
        install(place.plan)


def test_what_is_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="is not a Python that runs"):
        install(Plan(tmp_path / "env", tmp_path / "nothing", "cpu"))


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.plan.directory.mkdir()
    (place.plan.directory / "thesis.txt").touch()
    with pytest.raises(InstallError, match="holds something that is not an environment"):
        install(place.plan)
    assert (place.plan.directory / "thesis.txt").exists()


def test_a_full_disk_is_noticed_before_anything_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="GB are needed"):
        require_space(tmp_path, 10**18)


def test_the_gpu_build_is_installed_with_its_dependencies(tmp_path: Path) -> None:
    place = Place(tmp_path, version="3 12")
    install(Plan(place.plan.directory, place.plan.base_python, "gpu"))
    (line,) = (line for line in place.log().splitlines() if "pip install" in line)
    assert line.endswith(" vllm==0.32.0")
    assert "--no-deps" not in line


def test_the_other_build_replaces_the_first(tmp_path: Path) -> None:
    place = Place(tmp_path)
    install(place.plan)
    gpu = Plan(place.plan.directory, place.plan.base_python, "gpu")
    assert install(gpu)
    assert not place.plan.is_met()


def test_the_command_ends_with_one_and_a_sentence_when_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--cpu", "--python", str(tmp_path / "nothing"), "--dir", str(tmp_path / "env")])
    assert code == 1
    assert "is not a Python that runs" in capsys.readouterr().out

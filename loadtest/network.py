"""Hosts of their own on this machine, and packets between them that are truly lost: network namespaces on a bridge.

Each part of a house gets a namespace with an address. `cut(a, b)` gives both a wrong neighbour for the other, so what
they send goes to nobody: no end, no reset, no error, as when a cable is pulled. Linux, root and `ip` are needed;
`missing()` says what is not there.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from types import TracebackType
from typing import Self

NOBODY = "02:00:00:00:00:01"
_numbers = itertools.count()


def missing() -> str:
    """Empty, or why there can be no such network here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "`ip` is not on PATH; `apt-get install iproute2`"
    probe = Network(())
    try:
        probe.__enter__()
    except subprocess.CalledProcessError as error:
        return f"no bridge can be made here: {error.stderr.decode().strip()}"
    probe.close()
    return ""


class Network:
    def __init__(self, hosts: Iterable[str]) -> None:
        self._name = f"sy{os.getpid()}x{next(_numbers)}"
        self._subnet = f"10.{200 + os.getpid() % 50}.{next(_numbers) % 250}"
        self.address = {host: f"{self._subnet}.{number}" for number, host in enumerate(hosts, 1)}
        """By name of the host."""
        self.ours = f"{self._subnet}.254"
        """Where this process is in that network; it is never cut off."""

    def __enter__(self) -> Self:
        _sweep()
        try:
            _ip("link", "add", self._name, "type", "bridge")
            _ip("address", "add", f"{self.ours}/24", "dev", self._name)
            _ip("link", "set", self._name, "up")
            for number, host in enumerate(self.address):
                self._add(host, f"{self._name}p{number}")
        except subprocess.CalledProcessError:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for host in self.address:
            _ip("netns", "delete", self._space(host), check=False)
        _ip("link", "delete", self._name, check=False)

    def command(self, host: str) -> list[str]:
        """What to put before a command so that it runs there."""
        return ["ip", "netns", "exec", self._space(host)]

    def cut(self, one: str, *others: str) -> None:
        """From now on no packet passes between `one` and the others."""
        for here, there in self._ways(one, others):
            _ip("-n", here, "neighbour", "replace", there, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent")

    def heal(self, one: str, *others: str) -> None:
        for here, there in self._ways(one, others):
            _ip("-n", here, "neighbour", "delete", there, "dev", "eth0", check=False)

    def _ways(self, one: str, others: Iterable[str]) -> Iterable[tuple[str, str]]:
        for other in others:
            yield self._space(one), self.address[other]
            yield self._space(other), self.address[one]

    def _add(self, host: str, port: str) -> None:
        space = self._space(host)
        _ip("netns", "add", space)
        _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", port, "master", self._name, "up")
        for link in ("lo", "eth0"):
            _ip("-n", space, "link", "set", link, "up")
        _ip("-n", space, "address", "add", f"{self.address[host]}/24", "dev", "eth0")

    def _space(self, host: str) -> str:
        return f"{self._name}-{host}"


def _sweep() -> None:
    """Remove what a killed process left."""
    for kind, folder in (("netns", "/run/netns"), ("link", "/sys/class/net")):
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            owner = re.match(r"sy(\d+)x", name)
            if owner and not os.path.exists(f"/proc/{owner[1]}"):
                _ip(kind, "delete", name, check=False)


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)

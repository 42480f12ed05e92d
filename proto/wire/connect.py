"""From settings to a registry: the one way in for routers, node agents, the control plane and the command line."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated

from msgspec import Meta

from wire.etcd import EtcdRegistry
from wire.etcd_calls import Calls
from wire.settings import Settings
from wire.tls import TlsFiles, read

Endpoint = Annotated[str, Meta(pattern=r"^[^/\s]+:[0-9]+$")]


class RegistrySettings(Settings, frozen=True, kw_only=True):
    endpoints: Annotated[
        tuple[Endpoint, ...],
        Meta(min_length=1, description="host:port of the registry's members (etcd's client ports)"),
    ] = ("127.0.0.1:2379",)
    user: Annotated[str, Meta(description="etcd user; not needed where the certificate names it")] = ""
    password_file: Annotated[str, Meta(description="file that holds the user's password")] = ""
    tls: TlsFiles = TlsFiles()
    timeout_s: Annotated[float, Meta(gt=0, description="time limit of one call with all its attempts, seconds")] = 3.0

    def __post_init__(self) -> None:
        if bool(self.user) != bool(self.password_file):
            raise ValueError("user and password_file belong together: give both or neither")


def connect(settings: RegistrySettings) -> EtcdRegistry:
    """Call it inside the running loop; it does not wait. Close what it returns. Raises SettingsError."""
    password = _password(settings.password_file)
    password()  # a missing file is an error of the start, not of some later minute
    calls = Calls(
        settings.endpoints,
        credentials=settings.tls.channel_credentials(),
        user=settings.user,
        password=password,
        timeout_s=settings.timeout_s,
        first=random.randrange(len(settings.endpoints)),
    )
    return EtcdRegistry(calls)


def _password(path: str) -> Callable[[], str]:
    """Read at every login, so that a changed password is picked up."""
    return lambda: (read(path) or b"").decode().strip()

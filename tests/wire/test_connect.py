"""Settings of the registry, and what is refused before any call is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from wire.connect import RegistrySettings, connect
from wire.settings import SettingsError, read


def settings(**env: str) -> RegistrySettings:
    return read(RegistrySettings, section="registry", flags={}, env=env)[0]


def test_the_default_is_an_etcd_on_this_machine() -> None:
    assert ("127.0.0.1:2379",) == settings().endpoints


def test_endpoints_are_host_and_port() -> None:
    assert ("a:1", "[::1]:2") == settings(SWITCHYARD_REGISTRY_ENDPOINTS="a:1, [::1]:2").endpoints
    for wrong in ("http://a:1", "a", "a:b", ""):
        with pytest.raises(SettingsError, match="SWITCHYARD_REGISTRY_ENDPOINTS"):
            settings(SWITCHYARD_REGISTRY_ENDPOINTS=wrong)


def test_a_user_needs_a_password_file() -> None:
    with pytest.raises(SettingsError, match="user and password_file belong together"):
        settings(SWITCHYARD_REGISTRY_USER="router")


async def test_a_missing_password_file_is_an_error_of_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        connect(RegistrySettings(user="router", password_file=str(tmp_path / "absent")))


def test_a_client_is_made_inside_the_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        connect(RegistrySettings())

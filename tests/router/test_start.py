"""What a router says when it cannot start as it was told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from router.attempt import engine_key
from router.listen import listen
from wire.settings import SettingsError


def test_the_engines_key_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    assert (b"secret", b"") == (engine_key(str(tmp_path / "key")), engine_key(""))


def test_a_key_file_that_is_not_there_is_named_with_its_flag() -> None:
    with pytest.raises(SettingsError, match="--engine-api-key-file /nowhere: No such file"):
        engine_key("/nowhere")


def test_a_taken_port_is_said_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port}: .*--host or --port"):
            listen("127.0.0.1", port)

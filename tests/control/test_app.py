"""The control process at its start."""

from __future__ import annotations

import socket

import pytest

from control.app import serve
from control.errors import Failed
from control.settings import ControlSettings


async def test_a_taken_port_is_said_in_a_sentence_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Failed, match=f"cannot listen on 127.0.0.1:{port}: .*--port"):
            await serve(ControlSettings(port=port))

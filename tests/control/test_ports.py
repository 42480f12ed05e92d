import socket

import pytest

from control import ports
from control.errors import Failed

HOST = "127.0.0.1"


def test_a_port_that_somebody_listens_on_is_not_given_to_anything_inside() -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        assert port != next(ports.inside(HOST, port))


def test_the_public_port_is_the_one_asked_for_or_there_is_the_remedy() -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Failed, match=rf"port {port} is taken by another program; use another with --port \d+"):
            ports.public(HOST, port)
    assert port == ports.public(HOST, port)


def test_any_free_port_may_be_asked_for() -> None:
    assert ports.is_free(HOST, ports.public(HOST, 0))


def test_an_address_of_another_host_is_said_with_the_remedy() -> None:
    with pytest.raises(Failed, match=r"cannot listen on 192\.0\.2\.1: .*--host"):
        ports.public("192.0.2.1", 8000)

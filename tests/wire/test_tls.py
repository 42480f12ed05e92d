"""Certificates from files, for HTTP contexts; gRPC credentials are used in the tests of servers."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import msgspec
import pytest

from tests.wire.certificates import Authority
from wire.settings import SettingsError
from wire.tls import TlsFiles


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    authority = Authority(tmp_path)
    cert, key = authority.issue("one")
    return TlsFiles(ca=str(authority.ca), cert=cert, key=key)


async def fetch(server: TlsFiles, client: TlsFiles) -> bytes:
    """What a client gets that says hello over TLS."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"you said " + await reader.read(100))
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server.server_context())
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client.client_context())
        try:
            writer.write(b"hello")
            return await reader.read()
        finally:
            writer.transport.abort()


async def test_both_sides_trust_the_same_authority(files: TlsFiles) -> None:
    assert b"you said hello" == await fetch(files, files)


async def test_a_server_with_an_authority_refuses_clients_without_a_certificate(files: TlsFiles) -> None:
    try:
        heard = await fetch(files, TlsFiles(ca=files.ca))
    except (ssl.SSLError, ConnectionError):
        heard = b""  # with TLS 1.3 the refusal may come after the client's handshake, or not be heard at all
    assert b"" == heard


async def test_a_server_without_an_authority_takes_every_client(files: TlsFiles) -> None:
    assert b"you said hello" == await fetch(TlsFiles(cert=files.cert, key=files.key), TlsFiles(ca=files.ca))


async def test_a_client_refuses_a_server_of_another_authority(files: TlsFiles, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        await fetch(TlsFiles(cert=files.cert, key=files.key), TlsFiles(ca=str(other.ca)))


def test_nothing_set_is_no_tls() -> None:
    nothing = TlsFiles()
    assert nothing.channel_credentials() is None
    assert nothing.server_credentials() is None
    assert nothing.client_context() is None
    assert nothing.server_context() is None


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(msgspec.ValidationError, match="cert and key belong together"):
        msgspec.convert({"cert": "a.pem"}, TlsFiles)


def test_halves_of_a_setting_are_refused(files: TlsFiles) -> None:
    for half in (
        TlsFiles(cert=files.cert, key=files.key).channel_credentials,
        TlsFiles(ca=files.ca).server_credentials,
    ):
        with pytest.raises(SettingsError):
            half()
    for context in (TlsFiles(cert=files.cert, key=files.key).client_context, TlsFiles(ca=files.ca).server_context):
        with pytest.raises(SettingsError):
            context()


def test_a_file_that_is_missing_or_no_certificate_is_named(files: TlsFiles, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pem")
    with pytest.raises(SettingsError, match=r"missing\.pem: No such file"):
        TlsFiles(ca=missing).channel_credentials()
    with pytest.raises(SettingsError, match=r"missing\.pem"):
        TlsFiles(cert=missing, key=missing).server_context()
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(SettingsError, match=r"junk\.pem"):
        TlsFiles(ca=str(tmp_path / "junk.pem")).client_context()

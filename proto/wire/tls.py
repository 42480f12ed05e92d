"""Certificates from files: for gRPC channels and servers, and for HTTP.

One struct for both ends. A client with `ca` speaks TLS and shows `cert` if it has one. A server with `cert` speaks TLS
and, with `ca`, takes only clients whose certificate that authority signed. Files are read when the channel or server
is made: a renewed certificate is used after a restart.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated

import grpc
from msgspec import Meta

from wire.settings import Settings, SettingsError


class TlsFiles(Settings, frozen=True, kw_only=True):
    ca: Annotated[str, Meta(description="PEM file of the authority that signed the other side's certificate")] = ""
    cert: Annotated[str, Meta(description="PEM file of our own certificate with its chain")] = ""
    key: Annotated[str, Meta(description="PEM file of our private key")] = ""

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key belong together: give both or neither")

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """None without an authority: the channel is in the clear."""
        self._refuse_client_certificate_alone()
        if not self.ca:
            return None
        return grpc.ssl_channel_credentials(read(self.ca), read(self.key), read(self.cert))

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """None without a certificate: the server is in the clear."""
        self._refuse_authority_alone()
        key, cert = read(self.key), read(self.cert)
        if key is None or cert is None:
            return None
        return grpc.ssl_server_credentials([(key, cert)], read(self.ca), require_client_auth=bool(self.ca))

    def client_context(self) -> ssl.SSLContext | None:
        self._refuse_client_certificate_alone()
        if not self.ca:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody yet, checks host names
        return _loaded(context, self)

    def server_context(self) -> ssl.SSLContext | None:
        self._refuse_authority_alone()
        if not self.cert:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self.ca:
            context.verify_mode = ssl.CERT_REQUIRED
        return _loaded(context, self)

    def _refuse_client_certificate_alone(self) -> None:
        if self.cert and not self.ca:
            raise SettingsError("a client with a certificate needs the authority of the server too: set ca")

    def _refuse_authority_alone(self) -> None:
        if self.ca and not self.cert:
            raise SettingsError("a server that checks clients needs a certificate of its own: set cert and key")


def read(path: str) -> bytes | None:
    """The content of a file, None without a path. Raises SettingsError."""
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error


def _loaded(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if files.ca:
            context.load_verify_locations(cafile=files.ca)
        if files.cert:
            context.load_cert_chain(files.cert, files.key)
    except OSError as error:
        named = ", ".join(path for path in (files.ca, files.cert, files.key) if path)
        raise SettingsError(f"cannot use the certificates in {named}: {error}") from error
    return context

"""A certificate authority for one test, made with the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


class Authority:
    def __init__(self, directory: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl command: install openssl to test TLS")
        self._directory = directory
        self.ca = directory / "ca.pem"
        subject = ("-subj", "/CN=test authority", "-days", "2")
        self._openssl("req", "-x509", *self._new_key("ca"), *subject, "-out", str(self.ca))

    def issue(self, name: str) -> tuple[str, str]:
        """Paths of a certificate for loopback and of its key."""
        request, cert, key = (self._directory / f"{name}.{end}" for end in ("csr", "pem", "key"))
        extensions = self._directory / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        self._openssl("req", *self._new_key(name), "-subj", f"/CN={name}", "-out", str(request))
        signing = ("-CA", str(self.ca), "-CAkey", str(self._directory / "ca.key"), "-CAcreateserial", "-days", "2")
        self._openssl("x509", "-req", "-in", str(request), *signing, "-extfile", str(extensions), "-out", str(cert))
        return str(cert), str(key)

    def _new_key(self, name: str) -> tuple[str, ...]:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        return (*curve, "-keyout", str(self._directory / f"{name}.key"))

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

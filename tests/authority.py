"""Certificates for tests: an authority, and what it signs, by the program `openssl`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mosec_asgi.pool.ray.tls import AUTHORITY, CERTIFICATE, KEY, Files

_CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


class Authority:
    """Signs the certificates of nodes."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._name = name
        self.certificate, self.key = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
        _openssl(
            "req", "-x509", *_CURVE, "-subj", f"/CN={name}", "-days", "2", "-out", self.certificate, "-keyout", self.key
        )  # fmt: skip

    def node(self, name: str = "node", hosts: str = "") -> Files:
        """Return the files of a node, whose certificate names hosts: "DNS:localhost,IP:127.0.0.1"."""
        certificate, key, request = (str(self._folder / f"{self._name}-{name}.{end}") for end in ("pem", "key", "csr"))
        _openssl("req", *_CURVE, "-subj", f"/CN={name}", "-out", request, "-keyout", key)
        signed_by = ["-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial"]
        extensions = []
        if hosts:
            file = Path(request).with_suffix(".ext")
            file.write_text(f"subjectAltName={hosts}")
            extensions = ["-extfile", str(file)]
        _openssl("x509", "-req", "-in", request, *signed_by, *extensions, "-days", "2", "-out", certificate)
        return Files(certificate, key, self.certificate)


def variables(files: Files) -> dict[str, str]:
    """Return the variables by which a node has its files."""
    return dict(zip((CERTIFICATE, KEY, AUTHORITY), files, strict=True))


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)

"""X.509 certificates for the hosts of a lab: one authority, and one certificate for each host."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

QEMU_PKI = "/etc/pki/qemu"
"""Where libvirt has its QEMUs look for them, unless its qemu.conf says otherwise."""
_DAYS = "2"


class Authority:
    """An authority of the lab's own. Its files lie in a directory that the caller owns."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)
        self._certificate, self._key = directory / "ca-cert.pem", directory / "ca-key.pem"
        self._openssl(
            *("req", "-x509", "-new", "-sha256", "-days", _DAYS, "-subj", "/CN=the lab"),
            *("-addext", "keyUsage=critical,keyCertSign"),
            *("-nodes", "-newkey", "rsa:2048"),
            *("-keyout", str(self._key), "-out", str(self._certificate)),
        )

    def files(self, host: str, names: Iterable[str]) -> dict[str, str]:
        """What a host's QEMUs need: as a server by these names, and as a client."""
        key, request, signed, extensions = (
            self._directory / f"{host}.{end}" for end in ("key", "csr", "pem", "ext")
        )
        self._openssl(
            *("req", "-new", "-sha256", "-subj", f"/CN={host}", "-nodes"),
            *("-newkey", "rsa:2048", "-keyout", str(key), "-out", str(request)),
        )
        known = ",".join(f"DNS:{name}" for name in names)
        extensions.write_text(
            f"subjectAltName={known}\nextendedKeyUsage=serverAuth,clientAuth\n"
            "keyUsage=critical,digitalSignature,keyEncipherment\n"
        )
        self._openssl(
            *("x509", "-req", "-sha256", "-days", _DAYS, "-in", str(request), "-out", str(signed)),
            *("-CA", str(self._certificate), "-CAkey", str(self._key), "-CAcreateserial"),
            *("-extfile", str(extensions)),
        )
        files = {f"{QEMU_PKI}/ca-cert.pem": self._certificate.read_text()}
        for role in ("server", "client"):
            files[f"{QEMU_PKI}/{role}-cert.pem"] = signed.read_text()
            files[f"{QEMU_PKI}/{role}-key.pem"] = key.read_text()
        return files

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

"""X.509 certificates for the hosts of a lab: one authority, and one certificate for each host."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PKI = "/etc/pki"
"""Where libvirt and its QEMUs look for them, unless their settings say otherwise."""
_DAYS = "2"


@dataclass(frozen=True)
class Certificate:
    """A host's certificate, as a server and as a client, and the authority's: PEM texts."""

    authority: str
    own: str
    key: str

    def for_qemu(self) -> dict[str, str]:
        """The files that its QEMUs need: path and content."""
        files = {f"{PKI}/qemu/ca-cert.pem": self.authority}
        for role in ("server", "client"):
            files[f"{PKI}/qemu/{role}-cert.pem"] = self.own
            files[f"{PKI}/qemu/{role}-key.pem"] = self.key
        return files

    def for_libvirt(self) -> dict[str, str]:
        """The files that its libvirtd needs, and libvirt's clients."""
        files = {f"{PKI}/CA/cacert.pem": self.authority}
        for role in ("server", "client"):
            files[f"{PKI}/libvirt/{role}cert.pem"] = self.own
            files[f"{PKI}/libvirt/private/{role}key.pem"] = self.key
        return files


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

    def certify(self, host: str, names: Iterable[str]) -> Certificate:
        """Make a certificate for a host that is reached by these names."""
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
        return Certificate(self._certificate.read_text(), signed.read_text(), key.read_text())

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

"""Whether libvirt's own TLS can carry a migration: are its certificates there?

libvirt takes X.509 certificates from where its qemu.conf says, and makes none itself. What is
looked at are files of this host, so a libvirtd elsewhere is taken to have none.
"""

from __future__ import annotations

import socket
from pathlib import Path

from entourage.hypervisors.libvirt.qemuconf import CONF, read

_USUAL = "/etc/pki/qemu"


def directory(conf: Path = CONF) -> Path:
    """Where this host's certificates for migrations are to be."""
    said = read(conf)
    for key in ("migrate_tls_x509_cert_dir", "default_tls_x509_cert_dir"):
        if said.get(key):
            return Path(said[key])
    # libvirt's own fallback, where the directory is not named.
    own = Path("/etc/pki/libvirt-migrate")
    return own if own.is_dir() else Path(_USUAL)


def can_send(conf: Path = CONF) -> bool:
    """Whether this host can be the source."""
    return (directory(conf) / "ca-cert.pem").is_file()


def can_take(conf: Path = CONF) -> str:
    """By what name this host's certificate is to be checked; empty where it has none."""
    there = directory(conf)
    names = ("ca-cert.pem", "server-cert.pem", "server-key.pem")
    return socket.getfqdn() if all((there / name).is_file() for name in names) else ""

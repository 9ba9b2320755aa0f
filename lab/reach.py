"""What a bare system needs of this machine to reach the same package indexes by the same way.

Where this machine reaches them without any setting, that is next to nothing.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_OWN_AUTHORITIES = Path("/usr/local/share/ca-certificates")
_ALL_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_PIP = ("index-url", "extra-index-url", "proxy", "trusted-host", "default-timeout", "retries")
_APT = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")


def files() -> dict[str, bytes]:
    """Files to put into the system, by their paths there."""
    found = {str(path): path.read_bytes() for path in sorted(_OWN_AUTHORITIES.glob("**/*.crt"))} | {
        "/etc/resolv.conf": Path("/etc/resolv.conf").read_bytes()
    }
    settings = pip_settings(_said([sys.executable, "-m", "pip", "config", "list"]))
    if settings:
        lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items())]
        found["/etc/pip.conf"] = "".join(f"{line}\n" for line in lines).encode()
    return found


def environment(machine: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables to set there."""
    found = {name: value for name, value in machine.items() if name.lower() in _PROXIES}
    if any(_OWN_AUTHORITIES.glob("**/*.crt")):
        # pip and node bring lists of authorities of their own.
        for name in ("PIP_CERT", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"):
            found[name] = _ALL_AUTHORITIES
    return found


def apt_options() -> list[str]:
    """What of apt's settings tells how archives are reached."""
    return list(apt_settings(_said(["apt-config", "dump"]).splitlines()))


def apt_settings(dump: Iterable[str]) -> Iterable[str]:
    """Of lines of `apt-config dump`, those that tell how archives are reached."""
    return (line for line in dump if line.startswith(_APT) and not line.endswith('"";'))


def pip_settings(listed: str) -> dict[str, str]:
    """Of what `pip config list` says, how indexes are reached; what lies on this disk is not."""
    found: dict[str, str] = {}
    for line in listed.splitlines():
        place, _, quoted = line.partition("=")
        name = place.rpartition(".")[2]
        if name in _PIP:
            words = str(ast.literal_eval(quoted)).split()
            if kept := [word for word in words if not word.startswith(("/", "file:"))]:
                found[name] = " ".join(kept)
    return found


def _said(argv: list[str]) -> str:
    """What a program says; nothing where it is not there, or fails."""
    try:
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""

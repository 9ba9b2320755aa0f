"""The QEMU of a domain of this host's libvirt, its libvirtd, and where its memory goes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from urllib.parse import urlsplit

from entourage.hosts.process import ProcessHandle

_PIDS = Path("/run/libvirt/qemu")
_DAEMONS = {"/run/virtqemud.pid": "virtqemud", "/run/libvirtd.pid": "libvirtd"}


def qemu_of(name: str) -> ProcessHandle | None:
    """The process of a domain, by what libvirtd has written down; the caller closes it."""
    pid = 0
    with contextlib.suppress(OSError, ValueError):
        pid = int((_PIDS / f"{name}.pid").read_text())
    return ProcessHandle.open(pid)


def outlives(name: str, uuid: str) -> bool:
    """Whether a domain's QEMU runs, whatever libvirtd says of the domain. Reads files."""
    process = qemu_of(name)
    if process is None:
        return False
    with contextlib.closing(process), contextlib.suppress(OSError):
        # A number that libvirtd has left behind may be another process's by now.
        return uuid.encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    return False


def daemon() -> ProcessHandle | None:
    """The process of the system's libvirtd, or of its virtqemud; the caller closes it."""
    for file, name in _DAEMONS.items():
        with contextlib.suppress(OSError, ValueError):
            pid = int(Path(file).read_text())
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:  # else the file is old
                return ProcessHandle.open(pid)
    return None


def way_of(uri: str) -> tuple[str, int | None]:
    """Host and port in what Prepare answers; "" and None where it does not say.

    ``tcp://b:49152``, or ``tcp:b:49152``, which is QEMU's own form and that of older libvirts.
    """
    with contextlib.suppress(ValueError):
        parts = urlsplit(uri if "://" in uri else uri.replace(":", "://", 1))
        return parts.hostname or "", parts.port
    return "", None


def is_tcp(uri: str) -> bool:
    """Whether memory would go to a TCP port, and not to a socket or a device of this host's."""
    return uri.startswith("tcp:") and way_of(uri)[0] != ""

"""The QEMU of a domain of this host's libvirt, its libvirtd, and where its memory goes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from urllib.parse import urlsplit

from entourage.errors import HypervisorError
from entourage.hosts.process import ProcessHandle
from entourage.hosts.threads import in_thread

_ENDS_WITHIN = 5.0  # seconds
_LOOK_AGAIN = 0.1  # seconds
_PIDS = Path("/run/libvirt/qemu")
_DAEMONS = {"/run/virtqemud.pid": "virtqemud", "/run/libvirtd.pid": "libvirtd"}


def pid_of(name: str) -> int:
    """The process's number of a domain, by what libvirtd has written down; 0 where there is none.

    libvirtd writes it for whoever may read it; the file of a domain that has ended is gone.
    """
    with contextlib.suppress(OSError, ValueError):
        return int((_PIDS / f"{name}.pid").read_text())
    return 0


def qemu_of(name: str) -> ProcessHandle | None:
    """The process of a domain, by what libvirtd has written down; the caller closes it."""
    return ProcessHandle.open(pid_of(name))


def outlives(uuid: str) -> bool:
    """Whether a domain's QEMU runs here, whatever libvirtd says of the domain. Reads files.

    libvirtd may have forgotten the process's number, so all processes are looked at.
    """
    wanted = f"-uuid\0{uuid}\0".encode()
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            if wanted in process.read_bytes():
                return True
    return False


async def check_ended(name: str, uuid: str) -> None:
    """See that a domain that libvirtd calls off has no QEMU here any more.

    Raises:
        HypervisorError: It has one: libvirtd could not take it up again when it was restarted.
    """
    deadline = time.monotonic() + _ENDS_WITHIN
    while await in_thread(outlives, uuid):
        if time.monotonic() < deadline:  # a libvirtd that has just begun ends what it cannot use
            await asyncio.sleep(_LOOK_AGAIN)
            continue
        raise HypervisorError(
            f"libvirt says that {name} is off, and its QEMU runs on",
            remedy="the log of libvirtd says why; end that QEMU, or have libvirtd take it up again,"
            f" and then `entourage recover {name}`",
        )


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

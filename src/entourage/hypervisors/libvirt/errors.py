"""libvirt's words, as far as they name one of the domain's devices."""

from __future__ import annotations

import re
from pathlib import Path

from entourage.domain import Domain, Pci, Usb

SEE_LOGS = "see the log of libvirtd, and that of its QEMU"
_NEAR_END = 16 << 10

_ABOUT: tuple[tuple[str, str], ...] = (
    # A word of libvirt's reason, and the beginning of the id of the devices it is about.
    ("virtiofs", "fs"),
    ("9p", "fs"),
    ("filesystem", "fs"),
    ("hostdev", "pci"),
    ("host device", "pci"),
    ("host usb", "usb"),
    ("redir", "redir"),
    ("tpm", "tpm"),
)


def plain(message: str) -> str:
    """Without what only says who is speaking."""
    for prefix in ("libvirt: ", "operation failed: ", "internal error: ",
                   "Requested operation is not valid: ", "Operation not supported: "):  # fmt: skip
        message = message.removeprefix(prefix)
    return message


def qemu_said(log: Path) -> str:
    """What QEMU said last before it ended, from libvirt's log of it; empty where that is nothing.

    libvirt itself only says that QEMU has ended.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _NEAR_END))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    since_start = text.rpartition(": starting up")[2]
    said = re.findall(r"^\S*\s*qemu-system-\w+: (.*?)\s*$", since_start, re.MULTILINE)
    return "; ".join(dict.fromkeys(said[-3:]))


def device_of(domain: Domain, reason: str) -> str:
    """The label of the device that a reason is about; empty where it does not say."""
    lowered = reason.lower()
    for disk in domain.block:
        if f"'{disk.id}'" in lowered or disk.path.lower() in lowered:
            return disk.label
    devices: tuple[Usb | Pci, ...] = (*domain.usb, *domain.pci)
    for word, prefix in _ABOUT:
        if word not in lowered:
            continue
        for device in (*devices, *domain.tpm):
            if device.id.startswith(prefix):
                return device.label
    return ""

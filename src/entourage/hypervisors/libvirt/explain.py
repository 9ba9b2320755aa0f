"""libvirt's words, as far as they name one of the domain's devices."""

from __future__ import annotations

from entourage.domain import Domain, Pci, Usb

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

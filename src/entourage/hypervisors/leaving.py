"""What of a domain that is off cannot go to another host; the same for each hypervisor."""

from __future__ import annotations

from collections.abc import Iterator

from entourage.domain import Domain
from entourage.hosts.programs import files_of_image

Objection = tuple[str, str, str]
"""The device, the reason, what to do."""


def objections(domain: Domain, *, tpm_is_alone: bool) -> Iterator[Objection]:
    """Why a domain cannot leave its host while it is off.

    Args:
        domain: The domain.
        tpm_is_alone: Whether no other host can see the state of an emulated TPM.
    """
    for tpm in domain.tpm:
        if tpm.type != "emulator":
            yield _own(tpm.label)
        elif tpm_is_alone:
            reason = "its state is on this host, and moves only while the domain runs"
            yield tpm.label, reason, "start it, and move it then"
    for device in (*domain.usb, *domain.pci):
        if device.host_names:
            yield _own(device.label)
    for external in domain.external:
        reason = "what its tool keeps here moves only while the domain runs"
        yield external.label, reason, "start it, and move it then"


def _own(label: str) -> Objection:
    return label, "it is this host's own", "take it out of the domain first"


async def images(domain: Domain) -> list[str]:
    """The files and devices that its disks consist of; raises DeviceError."""
    found: list[str] = []
    for disk in domain.block:
        if disk.path:
            found += await files_of_image(disk.path, disk.format)
    return list(dict.fromkeys(found))

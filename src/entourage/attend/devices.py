"""Which of a domain's devices are Entourage's where the migration itself is somebody else's."""

from __future__ import annotations

import msgspec

from entourage.devices.tool.controller import tool_for
from entourage.domain import TOOL_TYPES, Boot, Device, Domain, External
from entourage.errors import ConfigError
from entourage.settings.model import Settings


def attended_part(domain: Domain, settings: Settings) -> Domain:
    """The domain with nothing but what is ours: external devices, notices, other devices' tools.

    Disks, NICs, TPM and all other devices of the hypervisor's stay the business of whoever migrates
    the domain. A tool that is set for one of them becomes an external device of the same id.

    Args:
        domain: With all its devices.
        settings: This host's: they may name tools.

    Raises:
        ConfigError: Two devices would have one id.
    """
    ours = list(domain.external)
    taken = {device.id for device in ours}
    for device in domain.devices:
        if device.device_class not in TOOL_TYPES:  # external, or a class of its own
            continue
        command = tool_for(device, settings)
        if not command:
            continue
        if device.id in taken:
            raise ConfigError(
                f"two devices are called {device.id}: {device.label} has a tool, and so it is"
                f" external/{device.id} here",
                path=f"what was written for {domain.name}",
                remedy="give the external device another id",
            )
        taken.add(device.id)
        ours.append(_as_external(device, command, settings))
    return msgspec.structs.replace(
        domain, boot=Boot(), block=(), net=(), tpm=(), usb=(), pci=(), external=tuple(ours)
    )


def _as_external(device: Device, command: str, settings: Settings) -> External:
    kind = device.device_class
    subtype = settings.tool.subtypes.get(kind)
    return External(id=device.id, tool=command, type=TOOL_TYPES[kind], subtype=subtype)

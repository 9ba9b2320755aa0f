"""What the built-in controllers say alike."""

from __future__ import annotations

import dataclasses

from entourage.devices.base import Here
from entourage.domain import Device
from entourage.events import Warned
from entourage.steps import Refusal


def refuse(device: Device, host: str, reason: str, remedy: str = "") -> Refusal:
    """A refusal that the user can mend."""
    return Refusal(device=device.label, host=host, reason=reason, remedy=remedy)


def no_way(device: Device, host: str, reason: str, remedy: str = "") -> Refusal:
    """A refusal of what the hypervisor cannot move at all; an external tool lifts it.

    Args:
        device: The device.
        host: Where the reason lies.
        reason: What is wrong.
        remedy: What would help beside a tool.
    """
    tool = f"configure an external migration tool: [tool] {device.device_class} = …"
    remedy = f"{remedy}; or {tool}" if remedy else tool
    return Refusal(device.label, host, reason, remedy, no_way=True)


def marked(here: Here, device: Device) -> list[Refusal]:
    """What the hypervisor itself says against moving this device."""
    return [
        refusal
        if refusal.remedy
        else dataclasses.replace(refusal, remedy="take it out of the domain first")
        for refusal in here.blockers
        if refusal.device == device.label
    ]


def warn(here: Here, device: Device, host: str, message: str) -> None:
    """Tell the user of something that stops nothing."""
    here.emit(Warned(at=here.now(), message=message, device=device.label, host=host))

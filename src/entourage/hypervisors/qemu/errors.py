"""What QEMU says, put into words for a user: which device it is about, and what can be done."""

from __future__ import annotations

import re
from pathlib import Path

from entourage.domain import Device, Domain
from entourage.errors import HypervisorError
from entourage.hosts.process import last_lines
from entourage.hypervisors.qemu.cmdline import device_id, mirror_name, node_name

# "2026-01-02T03:04:05.678901Z qemu-system-x86_64: -blockdev {"driver":…}: what is wrong"
_STAMP = re.compile(r"^\S+Z ")
_PROGRAM = re.compile(r"^(?:\S*/)?(?:qemu-system-\w+|qemu-kvm): ")
_OPTION = re.compile(r"^(-[a-z]\S*) (\{.*?\}|\S+)(?:,\S*)?: ")
_REMEDIES = (
    (r"Failed to get .* lock", "end the other process that uses the image"),
    (r"Image is not in qcow2 format", 'set format = "raw", if that is what it is'),
    (r"No such file or directory", "check the path"),
    (r"not a valid device model name", "qemu-system-x86_64 -device help lists what there is"),
)


def device_of(domain: Domain, text: str) -> str:
    """The label of the device that a text of QEMU's names; empty where it names none."""
    for device in domain.devices:
        if any(re.search(name, text) for name in _names(domain, device)):
            return device.label
    return ""


def _names(domain: Domain, device: Device) -> list[str]:
    """What QEMU may call a device: its id, its nodes, its place on the bus, its file."""
    names = [_whole(device_id(device))]
    # Below a port of its own a device is 0000:00:05.0:00.0.
    if address := getattr(device, "address", None):
        names.append(rf"\b0000:00:{re.escape(address)}(?![0-9])")
    if path := getattr(device, "path", None):
        names.append(rf"""(?:^|[\s'"\[]){re.escape(path)}(?=$|[\s'"\]:])""")
    if device in domain.block:
        names += [
            _whole(name(domain, disk))
            for disk in domain.block
            if disk is device
            for name in (node_name, mirror_name)
        ]
    return names


def _whole(name: str) -> str:
    return rf"(?<![A-Za-z0-9_.-]){re.escape(name)}(?![A-Za-z0-9_-])"


def plain(line: str) -> str:
    """A line of QEMU's without what only developers want to read."""
    return _OPTION.sub(r"\1: ", _PROGRAM.sub("", _STAMP.sub("", line)))


def start_failure(domain: Domain, log: Path, start: int) -> HypervisorError:
    """Why QEMU ended when it had hardly begun.

    Args:
        domain: What it was to be.
        log: Where it has said something after position ``start``.
        start: How long the log was before.
    """
    said = last_lines(log, start, 4)
    lines = [plain(line) for line in said.split(" / ") if "warning:" not in line]
    text = "; ".join(lines) or "it said nothing"
    remedy = next((remedy for sign, remedy in _REMEDIES if re.search(sign, said)), "")
    return HypervisorError(
        f"QEMU does not start: {text}",
        device=device_of(domain, said),
        remedy=remedy or f"{log} has all of it",
    )

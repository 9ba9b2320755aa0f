"""Where a running machine is no longer what was written down when it was started.

A target's machine is built from that record. What the machine's user has changed since by a monitor
of QEMU's (a snapshot, another medium, a device plugged or unplugged, a limit) would be lost there,
or would make the move fail after the guest has stopped: it is refused at TEST, each by its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from entourage.domain import Block, Domain
from entourage.hypervisors.frontends import frontends
from entourage.hypervisors.qemu.cmdline import device_id, mirror_name, port_ids
from entourage.hypervisors.qemu.qmp import Monitor
from entourage.hypervisors.understood import understood
from entourage.steps import Refusal

_LIMITS = ("iops", "bps")
# What QEMU says of a machine that does not go on by itself, and what lets it be moved.
_STANDS_STILL = {
    "guest-panicked": ("its guest has crashed", "reset it (system_reset), or stop and start it"),
    "internal-error": ("QEMU stopped it after an error", "stop it and start it again"),
    "io-error": ("it stands still after an I/O error", "mend its storage, and let it go on (cont)"),
    "shutdown": ("its guest has shut down", "stop it, and start it on the other host"),
    "suspended": ("its guest is suspended to memory", "wake it up (system_wakeup)"),
    "watchdog": ("its watchdog has stopped it", "reset it (system_reset)"),
    "postmigrate": (
        "an earlier migration was given up while it was paused: QEMU cannot move it like that",
        "resume the guest once; it can then be paused again",
    ),
}


async def drift(monitor: Monitor, domain: Domain, host: str) -> list[Refusal]:
    """What keeps a machine from being built anew as it is now, from its record.

    Args:
        monitor: Of the machine.
        domain: The record.
        host: What this host is called in a refusal.
    """
    named, unnamed, blocks, jobs, cpus, status = await asyncio.gather(
        monitor.execute("qom-list", {"path": "/machine/peripheral"}),
        monitor.execute("qom-list", {"path": "/machine/peripheral-anon"}),
        monitor.execute("query-block"),
        monitor.execute("query-jobs"),
        monitor.execute("query-cpus-fast"),
        monitor.execute("query-status"),
    )
    with understood("QEMU's answer about its devices"):
        found = [
            *_state(status["status"]),
            *_devices(domain, _children(named), _children(unnamed)),
            *_media(domain, blocks),
            *_jobs(domain, jobs),
        ]
        if len(cpus) != domain.vcpus:
            reason = f"it has {len(cpus)} processors now, and was started with {domain.vcpus}"
            remedy = "unplug what was plugged, or stop it and start it again"
            found.append(("domain", reason, remedy))
    return [Refusal(device, host, reason, remedy) for device, reason, remedy in found]


_Found = tuple[str, str, str]
"""Device, reason, remedy."""


def _state(status: str) -> Iterator[_Found]:
    if known := _STANDS_STILL.get(status):
        yield "domain", *known


def _children(properties: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Names and types of an object's children."""
    return {
        str(one["name"]): str(one["type"]).removeprefix("child<").removesuffix(">")
        for one in properties
        if str(one["type"]).startswith("child<")
    }


def _devices(
    domain: Domain, named: Mapping[str, str], unnamed: Mapping[str, str]
) -> Iterator[_Found]:
    ours = {
        device_id(device): device.label
        for device in (*domain.block, *domain.net, *domain.usb, *domain.pci)
        if device is not domain.variables  # a part of the machine
    }
    for name, label in ours.items():
        if name not in named:
            yield (
                label,
                "it was unplugged from the running machine",
                "plug it in again, or take it out of the domain's file and start the domain anew",
            )
    expected = {*ours, *port_ids(domain), *(("usb",) if domain.usb else ())}
    plugged = [(name, kind) for name, kind in named.items() if name not in expected]
    for name, kind in plugged:
        yield (
            "domain",
            f"the device {name} ({kind}) was plugged into the running machine",
            f"unplug it (device_del {name}), or have it in the domain's file when it is started",
        )
    known = [tpm.model for tpm in domain.tpm]
    for kind in unnamed.values():
        if kind in known:
            known.remove(kind)
        else:
            yield (
                "domain",
                f"a {kind} without an id was plugged into the running machine",
                "stop it and start it again: what has no id cannot be unplugged",
            )


def _media(domain: Domain, blocks: Sequence[Mapping[str, Any]]) -> Iterator[_Found]:
    by_device = frontends(blocks)
    for disk in domain.block:
        one = by_device.get(device_id(disk))
        if one is not None:
            yield from _medium(disk, one.get("inserted"))


def _medium(disk: Block, inserted: Mapping[str, Any] | None) -> Iterator[_Found]:
    """What differs in a device that is there: its medium, an overlay, a limit."""
    if inserted is None:
        reason = f"{disk.path} was taken out of it"
        yield disk.label, reason, f"put it back (blockdev-change-medium {device_id(disk)})"
        return
    file = str(inserted.get("file", ""))
    if not _same(file, disk.path):
        if disk.model == "ide-cd":
            reason = f"{file} is in it now, in the place of {disk.path}"
            remedy = f"put that back in (blockdev-change-medium {device_id(disk)})"
        else:
            reason = f"the guest writes to {file} now (a snapshot?), and no longer to {disk.path}"
            remedy = "merge it down again (block-commit), or name it in the domain's file and start"
        yield disk.label, reason, remedy
    if any(value for name, value in inserted.items() if name.startswith(_LIMITS)):
        yield (
            disk.label,
            "its speed was limited by a monitor, and would not be on the target",
            f"lift the limit (block_set_io_throttle {device_id(disk)} 0 0 0 0 0 0)",
        )


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):
        return False


def _jobs(domain: Domain, jobs: Sequence[Mapping[str, Any]]) -> Iterator[_Found]:
    ours = {mirror_name(domain, disk) for disk in domain.block}
    for job in jobs:
        name, kind = str(job["id"]), str(job["type"])
        if name not in ours:
            yield (
                "domain",
                f"a job of QEMU's is under way, {name} ({kind})",
                f"wait for its end, or give it up (block-job-cancel {name})",
            )

"""What is looked at in a Xen domain that runs here, before it moves."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entourage.hosts.threads import in_thread
from entourage.hypervisors.files import digest
from entourage.hypervisors.xen import hostdevices
from entourage.hypervisors.xen.configuration import domain_type, unreadable_disks
from entourage.hypervisors.xen.handle import Handle
from entourage.hypervisors.xen.xl import info
from entourage.steps import Refusal

_SECTOR = 512
_WATCHES_ON = (4, 20)


async def facts(handle: Handle) -> Mapping[str, str]:
    """Xen's version, what the machine is made of, and digests of what it boots from."""
    found = {
        **await info("xen_version", "xen_caps"),
        "type": domain_type(handle.config),
        "memory": str(handle.domain.memory),
        "config": json.dumps(handle.config),
    }
    for path in handle.domain.boot.files:
        found[f"sha256:{path}"] = await in_thread(digest, path)
    return found


async def blockers(handle: Handle) -> Sequence[Refusal]:
    """What xl would fail at half-way, or do though it should not."""
    host, found = socket.gethostname(), list[tuple[str, str, str]]()
    now = handle.life()
    if now is not None and (now.paused or now.suspended):
        remedy = f"`xl unpause {handle.domain.name}`, and pause it there"
        found.append(("domain", "it is paused, and only a guest that runs can suspend", remedy))
    if _true(handle.config.get("b_info", {}), "disable_migrate"):
        found.append(("domain", "its configuration says nomigrate", "take that out of it"))
    if domain_type(handle.config) == "pv" and "shadow" not in (await info("virt_caps")).get(
        "virt_caps", ""
    ):
        reason = "this Xen is built without shadow paging, which a PV guest needs to move live"
        found.append(("domain", reason, "make it a PVH guest"))
    for what in unreadable_disks(handle.config):
        remedy = "qemu-img convert it to raw, or put it behind a script of its own"
        found.append(("domain", what, remedy))
    for bdf in await _hidden_pcis(handle):
        reason = f"PCI device {bdf} is attached by a name, and `xl list -l` does not have it"
        found.append(("domain", reason, f"`xl pci-detach {handle.domain.name} {bdf}`"))
    for disk in handle.domain.block:
        if await in_thread(_ends_within_a_sector, Path(disk.path)):
            reason = f"{disk.path} does not end with a whole sector"
            found.append((disk.label, reason, f"truncate -s %{_SECTOR} {disk.path}"))
    return [Refusal(device, host, reason, remedy) for device, reason, remedy in found]


async def _hidden_pcis(handle: Handle) -> list[str]:
    """What is attached by the name that ``xl pci-assignable-add -n`` gave it."""
    if handle.domid is None or domain_type(handle.config) == "pvh":
        return []
    known = {pci.host for pci in handle.domain.pci}
    return sorted(await hostdevices.attached_pcis(handle.domid) - known)


async def forgets_suspended() -> bool:
    """Whether xl ends its watch over a domain as it suspends, also where it goes on here.

    As found with Xen 4.17; by xl's own history, 4.20 is the first that does not.
    """
    said = (await info("xen_version")).get("xen_version", "")
    numbers = [int("".join(filter(str.isdigit, part)) or 0) for part in said.split(".")[:2]]
    return (*numbers,) < _WATCHES_ON


def _true(config: dict[str, Any], key: str) -> bool:
    """A ``libxl_defbool`` of JSON."""
    return str(config.get(key, "")).lower() in {"true", "1"}


def _ends_within_a_sector(path: Path) -> bool:
    return path.is_file() and bool(path.stat().st_size % _SECTOR)

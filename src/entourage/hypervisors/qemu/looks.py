"""What is asked of a running machine at TEST."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from entourage.hosts.threads import in_thread
from entourage.hypervisors.files import digest
from entourage.hypervisors.qemu import tpm as tpms
from entourage.hypervisors.qemu.binary import loses_state
from entourage.hypervisors.qemu.drift import drift
from entourage.hypervisors.qemu.errors import device_of
from entourage.hypervisors.qemu.handle import Handle
from entourage.hypervisors.qemu.virtio import ORDINARY_QUEUE, largest_queue
from entourage.steps import Refusal

_CPU_FLAGS = Path("/proc/cpuinfo")


async def facts(handle: Handle) -> Mapping[str, str]:
    """QEMU's version, digests of the boot files; with KVM the CPU's flags."""
    found = {"qemu": ".".join(map(str, handle.monitor.version))}
    if (entries := await largest_queue(handle.monitor)) > ORDINARY_QUEUE:
        found["virtio-queues"] = str(entries)
    for path in handle.domain.boot.files:
        found[f"sha256:{path}"] = await in_thread(digest, path)
    if handle.domain.accel == "kvm":
        found["cpu-flags"] = " ".join(sorted(cpu_flags()))
    return found


async def blockers(handle: Handle) -> Sequence[Refusal]:
    """What QEMU itself marks as not migratable, and what is not as it was started."""
    monitor, domain, host = handle.monitor, handle.domain, socket.gethostname()
    info, found = await asyncio.gather(
        monitor.execute("query-migrate"), drift(monitor, domain, host)
    )
    reasons: list[str] = info.get("blocked-reasons", [])
    found += [
        Refusal(
            device=device_of(domain, reason) or "domain",
            host=host,
            reason=f"QEMU cannot move it: {reason}",
            remedy="take the device out of the machine, or set an external tool for it",
            no_way=True,
        )
        for reason in reasons
    ]
    models = {device: device.model for device in (*domain.usb, *domain.pci)}
    lost = await loses_state(model for model in models.values() if model)
    found += [
        Refusal(
            device=device.label,
            host=host,
            reason=f"QEMU does not carry the state of a {model}, and does not say so",
            remedy="take the device out of the machine, or set an external tool for it",
            no_way=True,
        )
        for device, model in models.items()
        if model in lost
    ]
    found += await _dead_tpms(handle, host)
    return found


async def _dead_tpms(handle: Handle, host: str) -> list[Refusal]:
    """A TPM whose emulator has ended has lost what it had in memory: nothing can be moved."""
    domain = handle.domain
    emulated = [tpm for tpm in domain.tpm if tpm.type == "emulator"]
    if not emulated or await in_thread(tpms.is_alive, handle.running.marker):
        return []
    remedy = f"stop {domain.name} and start it again: the TPM's state on disk is whole"
    reason = "its emulator (swtpm) has ended"
    return [Refusal(tpm.label, host, reason, remedy) for tpm in emulated]


def cpu_flags() -> frozenset[str]:
    """What this host's CPU can do, in Linux' words."""
    for line in _CPU_FLAGS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()

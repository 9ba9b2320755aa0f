"""A Xen domain that runs here: the source's half of a migration."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entourage.domain import Block, Net, Tpm
from entourage.errors import HypervisorError
from entourage.handover.values import Guest
from entourage.hypervisors.base import Capability, Export, TpmFacts
from entourage.hypervisors.files import digest
from entourage.hypervisors.hostdevices import HostDevice, Objection
from entourage.hypervisors.xen import hostdevices
from entourage.hypervisors.xen.announce import announce
from entourage.hypervisors.xen.carrier import Carrier
from entourage.hypervisors.xen.configuration import domain_type, unreadable_disks
from entourage.hypervisors.xen.hostdevices import HostDevices
from entourage.hypervisors.xen.sender import Word
from entourage.hypervisors.xen.xl import info, xl
from entourage.steps import Refusal

CAPABILITIES = frozenset({Capability.CARRY_RAW, Capability.ANNOUNCE, Capability.UNPLUG})
_SECTOR = 512
_RELEASES_WITHIN = 60.0


class XenMachine(Carrier):
    """A domain of this dom0."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Raw disks are copied beside the memory; devices of the host are taken out before."""
        return CAPABILITIES

    async def reattach(self, *, was_running: bool) -> Guest:
        """Take up a migration that another process began; what became of the guest here."""
        self._was_running = was_running
        now = self._life()
        if now is None or now.ended:
            return Guest.DEAD
        return Guest.STOPPED if now.suspended or now.paused else Guest.RUNNING

    async def close(self) -> None:
        """Let go of the machine without changing it."""
        await self._end_copies()
        if self._end is not None:
            await self._end.close()
        if self._xl is not None:
            self._xl.close()
        await self._store.close()

    async def facts(self) -> Mapping[str, str]:
        """Xen's version, the kind of machine, and digests of what it boots from."""
        found = {
            **await info("xen_version", "xen_caps"),
            "type": domain_type(self._config),
            "memory": str(self._domain.memory),
        }
        for path in self._domain.boot.files:
            found[f"sha256:{path}"] = await asyncio.to_thread(digest, path)
        return found

    async def blockers(self) -> Sequence[Refusal]:
        """What xl would fail at half-way, or do though it should not."""
        host, found = socket.gethostname(), list[tuple[str, str, str]]()
        now = self._life()
        if now is not None and (now.paused or now.suspended):
            remedy = f"`xl unpause {self._domain.name}`, and pause it there"
            found.append(("domain", "it is paused, and only a guest that runs can suspend", remedy))
        if _true(self._config.get("b_info", {}), "disable_migrate"):
            found.append(("domain", "its configuration says nomigrate", "take that out of it"))
        if domain_type(self._config) == "pv" and "shadow" not in (await info("virt_caps")).get(
            "virt_caps", ""
        ):
            reason = "this Xen is built without shadow paging, which a PV guest needs to move live"
            found.append(("domain", reason, "make it a PVH guest"))
        for what in unreadable_disks(self._config):
            remedy = "qemu-img convert it to raw, or put it behind a script of its own"
            found.append(("domain", what, remedy))
        for bdf in await self._hidden_pcis():
            reason = f"PCI device {bdf} is attached by a name, and `xl list -l` does not have it"
            found.append(("domain", reason, f"`xl pci-detach {self._domain.name} {bdf}`"))
        for disk in self._domain.block:
            path = Path(disk.path)
            if path.is_file() and path.stat().st_size % _SECTOR:
                reason = f"{disk.path} does not end with a whole sector"
                found.append((disk.label, reason, f"truncate -s %{_SECTOR} {disk.path}"))
        return [Refusal(device, host, reason, remedy) for device, reason, remedy in found]

    async def _hidden_pcis(self) -> list[str]:
        """What is attached by the name that ``xl pci-assignable-add -n`` gave it."""
        if self._domid is None or domain_type(self._config) == "pvh":
            return []
        known = {pci.host for pci in self._domain.pci}
        return sorted(await hostdevices.attached_pcis(self._domid) - known)

    async def died(self) -> str:
        """Returns, with the reason, when the domain is gone; never before."""
        await self._until_gone()
        return "xl knows it no more"

    # Operations for controllers

    async def mirror(self, disk: Block, export: Export, *, top_only: bool) -> None:  # noqa: ARG002 - see CAPABILITIES
        """It does not: disks are carried."""
        raise HypervisorError("Xen mirrors no disk by itself", device=disk.label)

    async def complete_mirror(self, disk: Block) -> None:
        """Nothing: the carrier has it."""

    async def cancel_mirror(self, disk: Block) -> None:
        """Nothing: a copy ends with the migration."""

    async def tpm_facts(self) -> TpmFacts:
        """Nothing: a vTPM is another domain, and an external tool's to move."""
        return TpmFacts()

    async def erase_tpm(self, tpm: Tpm) -> None:
        """Nothing: see ``tpm_facts``."""

    async def test_unplug(self, device: HostDevice) -> Sequence[Objection]:
        """Why this device cannot be taken out of the running guest, or would not come back."""
        return hostdevices.test_unplug(device, self._config)

    async def unplug(self, device: HostDevice) -> None:
        """Take one of the host's own out; one that is out already is no error."""
        await self._attached().unplug(device)

    async def plug(self, device: HostDevice) -> None:
        """Give it back; one that is there already, or a guest that is not, is no error."""
        now = self._life()
        if now is not None and not now.ended:
            await self._attached().plug(device)

    def _attached(self) -> HostDevices:
        if self._host_devices is None:
            if self._domid is None:
                raise HypervisorError(f"the machine of {self._domain.name} is gone")
            self._host_devices = HostDevices(self._domid, self._domain.name)
        return self._host_devices

    async def announce(self, nets: Sequence[Net]) -> None:
        """The guest is back: its MACs are here again."""
        await asyncio.to_thread(announce, nets)

    # The end

    async def halt(self) -> None:
        """Stop the guest and keep it: it was found running without a right to."""
        if self._domid is not None:
            await xl("pause", str(self._domid))

    async def release(self) -> None:
        """The domain runs on the target: xl destroys its copy; where xl is gone, it is told to."""
        end, ours = self._end, self._xl
        if end is not None and ours is not None and not end.has_gone:
            end.say(Word.RELEASE)
            try:
                async with asyncio.timeout(_RELEASES_WITHIN):
                    await ours.ended()
            except TimeoutError:
                ours.kill()
        await self._destroy()
        await self._end_copies()
        await self._tidy()


def _true(config: dict[str, Any], key: str) -> bool:
    """A ``libxl_defbool`` of JSON."""
    return str(config.get(key, "")).lower() in {"true", "1"}

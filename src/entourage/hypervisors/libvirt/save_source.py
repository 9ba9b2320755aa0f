"""A libvirt domain that runs here and is to be saved, whichever way its memory takes.

Disks that are copied end their copies once its guest is suspended (``mirrors.py``), or changes of
them are copied then (``changes.py``): libvirt takes no memory while it copies a disk.

It ends here once the save has its name. Its definition stays, as with ``virsh save``, but does not
start by itself when its host does: the machine may run elsewhere by then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.base import DataPlane
from entourage.hypervisors.libvirt import looks
from entourage.hypervisors.libvirt.activation import not_before_it_has_run
from entourage.hypervisors.libvirt.changes import copy_name
from entourage.hypervisors.libvirt.checkpoints import checkpoints_of
from entourage.hypervisors.libvirt.connection import LostError, RefusedError, ask
from entourage.hypervisors.libvirt.constants import NO_DOMAIN, State
from entourage.hypervisors.libvirt.domainxml import parse, read_domain
from entourage.hypervisors.libvirt.errors import device_of, plain
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.lookups import lookups_of
from entourage.hypervisors.libvirt.machine import LibvirtMachine, let_run
from entourage.hypervisors.libvirt.mirrors import Mirrors
from entourage.hypervisors.libvirt.survey import Survey, survey
from entourage.hypervisors.libvirt.tpm import KeptTpm, SourceTpm
from entourage.hypervisors.values import LocalData
from entourage.steps import Planned, Refusal

_SAVED_BEFORE = "paused due to previous migration"
"""QEMU's words: it has saved the memory of a guest that has not run since."""


class SaveSource(LibvirtMachine):
    """A domain of this host's libvirtd that is saved.

    Args:
        handle: The domain, as libvirtd has it.
        log: Takes what the deadman says.
        host: This host's name, for refusals.
    """

    def __init__(self, handle: Handle, log: Path, host: str) -> None:
        super().__init__(handle, log)
        self._host = host
        self._stopped_at = 0
        self._mirrors = Mirrors(handle, self._job)
        self._after_abort = ""

    @property
    def saving(self) -> None:
        """It is this one."""
        return

    @property
    def carrying(self) -> None:  # type: ignore[override] - nothing is sent that could take disks along
        """None: only memory goes into a save."""
        return

    @property
    def mirroring(self) -> Mirrors:
        """Disks that are copied into the save."""
        return self._mirrors

    @property
    def tpm(self) -> SourceTpm:
        """Its state is in memory's file; it stays where the definition does."""
        return SourceTpm(self.domain) if self._handle.transient else KeptTpm(self.domain)

    @property
    def definition(self) -> Planned | None:
        """It stays, as with ``virsh save``."""
        return None

    def local(self) -> LocalData:
        """Where the save takes memory; raises HypervisorError where it does not move into one."""
        return self.plane_here()[1]

    def plane_here(self) -> tuple[DataPlane, LocalData]:
        """The way of its data, and where the save takes memory.

        Raises:
            HypervisorError: It does not move into a save.
        """
        if self._plane is None or self._plane.local is None:
            raise HypervisorError("a machine is saved by a process of the host that it runs on")
        return self._plane, self._plane.local

    async def blockers(self) -> Sequence[Refusal]:
        """What speaks against saving it."""
        found = await survey(self._handle)
        self._mirrors.know(found.traits)
        if found.jobs:
            return found.jobs
        return [*await ask(self._look), *await self.asked(found)]

    async def asked(self, found: Survey) -> Sequence[Refusal]:
        """What libvirt has against it, which does not move a domain that has snapshots."""
        return found.snapshots or await looks.asked(self._handle, "save")

    def _look(self) -> list[Refusal]:
        handle = self._handle
        found = [
            Refusal("domain", self._host, reason, remedy)
            for reason, remedy in out_of_sight(parse(handle.raw.XMLDesc(0)), self.domain)
        ]
        name = self.domain.name
        if os.geteuid():
            reason = "libvirt writes its memory as root, and only root may read that"
            found.append(Refusal("domain", self._host, reason, "save it as root"))
        if handle.raw.state(0)[0] == State.SUSPENDED:
            reason = "its guest sleeps (ACPI S3), and would not be woken up by a restore"
            found.append(Refusal("domain", self._host, reason, f"virsh dompmwakeup {name}"))
        if names := [each.name for each in checkpoints_of(handle.raw)]:
            reason = (
                f"libvirt keeps checkpoints of it ({', '.join(names)}), whose bitmaps QEMU writes"
                " into its disks again whenever it opens them: they would not be what was saved"
            )
            remedy = f"virsh checkpoint-delete {name} {names[0]} --children; then back up in full"
            found.append(Refusal("domain", self._host, reason, remedy))
        return found

    def told(self, error: RefusedError, otherwise: str) -> HypervisorError:
        """What libvirt has refused, for people.

        Args:
            error: Its own.
            otherwise: What to do where nothing better is known.
        """
        reason, name = plain(error.message), self.domain.name
        remedy = otherwise
        if _SAVED_BEFORE in reason:
            remedy = not_before_it_has_run(name)
        device = device_of(self.domain, reason)
        return HypervisorError(f"libvirt cannot save it: {reason}", device=device, remedy=remedy)

    async def arm(self, plane: DataPlane, **more: Any) -> None:
        """Listen, and arm the deadman."""
        await super().arm(plane, **more)
        self._mirrors.plane = plane

    def to_be_ended(self, plane: DataPlane) -> Sequence[str]:
        """Copies of what was written since a checkpoint."""
        since = plane.local.since if plane.local else None
        return [copy_name(disk) for disk in self.domain.block if since and disk.id in since.images]

    async def stop_guest(self) -> None:
        """Suspend it: from here on its disks, and all of its memory, are of one moment.

        Raises:
            HypervisorError: Its user had paused it, and has resumed it since.
        """
        self._job.heard().known.forget_moments()
        if self.was_running:
            await self._handle.suspend()
        elif await self._runs():
            raise let_run()
        self._stopped_at = time.monotonic_ns()

    async def check_still(self) -> None:
        """Raise HypervisorError where the guest runs, or has run since it was stopped."""
        if await self._runs():
            raise let_run()
        await self.check_stood_still(time.monotonic_ns())

    async def _runs(self) -> bool:
        return await self._handle.state() in {State.RUNNING, State.BLOCKED}

    async def check_devices(self, text: str) -> None:
        """Raise HypervisorError where the domain has other devices, or media, than at TEST.

        Nobody has looked at these, and nothing in the save is of them: it could not be restored.

        Args:
            text: The XML that is kept of it.
        """
        now = await ask(read_domain, text, lookups_of(self._handle.connection))
        if changed := sorted({label for label, _ in _devices(now) ^ _devices(self.domain)}):
            raise HypervisorError(
                f"its devices were changed while it was saved: {', '.join(changed)}",
                remedy="save it again",
            )

    async def check_stood_still(self, until: int) -> None:
        """See ``Machine``: libvirt tells of who resumes it, unless it was lost."""
        known = self._job.heard().known
        if (self._stopped_at or known.stopped_at) < known.first_resumed_at < until:
            raise let_run()

    async def abort(self) -> None:
        """Give the save up at whatever point: the guest runs here again, or stays paused."""
        await self._mirrors.end_changes()
        await super().abort()
        if self._plane is not None and not self.local().copies:
            return
        # Not every process has come to note that disks were copied.
        left: list[str] = []
        for disk in self.domain.block:
            try:
                await self._mirrors.cancel(disk)
            except HypervisorError as error:  # its guest runs, whatever becomes of a copy
                left.append(str(error))
        try:
            await self._mirrors.end_changes()  # now nothing is in the way of dropping their nodes
        except HypervisorError as error:
            left.append(str(error))
        self._after_abort = "; ".join(left)

    @property
    def after_abort(self) -> str:
        """Copies of its disks that libvirt has not ended."""
        return self._after_abort

    async def release(self) -> None:
        """The save has its name: the domain ends here, and its definition stays."""
        try:
            await self.end()
        except LostError:
            await self._handle.find_again()
            await self.end()
        await self._dismiss()

    async def end(self) -> None:
        """End it, and have libvirtd not start it with its host, beside what is restored of it."""
        raw, autostart = self._handle.raw, self._handle.autostart
        await self._handle.end()
        if raw is not None and not self._handle.transient:
            try:
                await autostart.hold(raw)
            except RefusedError as error:
                if error.code != NO_DOMAIN:  # else it was undefined meanwhile, and starts nowhere
                    raise
        await autostart.forget()


def _devices(domain: Domain) -> set[tuple[str, str]]:
    """What the hypervisor gives it: the label of each device, and where a disk is."""
    others = (*domain.net, *domain.usb, *domain.pci, *domain.tpm)
    return {
        *((disk.label, disk.path) for disk in domain.block),
        *((device.label, "") for device in others),
    }


def out_of_sight(live: ET.Element, domain: Domain) -> Iterator[tuple[str, str]]:
    """Disks of which nobody can see whether they change while their guest is saved, and a remedy.

    Args:
        live: The running domain's XML.
        domain: The same as it is known here, with those disks that are files or devices.
    """
    known = {disk.id for disk in domain.block}
    for disk in live.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        name = target.get("dev", "") if target is not None else ""
        if source is None or name in known:
            continue
        yield (
            f"nobody here sees whether its disk {name} changes while the guest is saved",
            f"shut the domain down instead; `virsh save {domain.name}` does not look at all",
        )

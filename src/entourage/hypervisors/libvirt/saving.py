"""A libvirt domain that runs here and is to be saved: the source's half of a save.

libvirt's own save ends the domain in the moment in which its file is whole, when nothing else of
the save is. So memory is written as of an external snapshot without any disk: the file is the one
that ``virsh save`` makes, and the guest stays as it was, paused, until the save has its name.

    start    suspend; disks that are copied end their copies then (``mirrors.py``)
    continue_switchover  the snapshot, in a thread: libvirt writes the file; not before, for it
             begins none while it copies a disk
    landed   the file is whole: the other half is told, and what libvirt has written into it
    release  the domain ends here; its definition stays, as with ``virsh save``, but does not start
             by itself when its host does: the machine may run elsewhere by then
    abort    end the snapshot's job: the guest runs here again
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.local import connected_here
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DataPlane, Plan, Ticket
from entourage.hypervisors.libvirt import attending, looks
from entourage.hypervisors.libvirt.arrival import sync_definitions
from entourage.hypervisors.libvirt.checkpoints import checkpoints_of
from entourage.hypervisors.libvirt.connection import LostError, RefusedError, ask, call
from entourage.hypervisors.libvirt.constants import (
    IMAGE_XML_SECURE,
    NO_DOMAIN,
    NO_METADATA,
    XML_INACTIVE,
    XML_MIGRATABLE,
    XML_SECURE,
    Parameter,
    State,
)
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.errors import device_of, plain
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.machine import LibvirtMachine, let_run
from entourage.hypervisors.libvirt.mirrors import Mirrors
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.libvirt.survey import survey
from entourage.hypervisors.libvirt.tpm import KeptTpm, SourceTpm
from entourage.hypervisors.reach import check_local, image_of_save
from entourage.hypervisors.values import SavePlan
from entourage.steps import Planned, Refusal

_SAVED_BEFORE = "paused due to previous migration"
"""QEMU's words: it has saved the memory of a guest that has not run since."""
_AGAIN = 0.1  # seconds between two attempts to end the snapshot's job
_ENDS_WITHIN = 10.0  # seconds for it to end; after them it is ended as a job that nobody waits for


class LibvirtSaving(LibvirtMachine):
    """A domain of this host's libvirtd that is saved.

    Args:
        handle: The domain, as libvirtd has it.
        log: Takes what the deadman says.
        host: This host's name, for refusals.
    """

    def __init__(self, handle: Handle, log: Path, host: str) -> None:
        super().__init__(handle, log)
        self._host = host
        self._writing: asyncio.Future[Any] | None = None
        self._file = ""
        self._stopped_at = 0
        self._after_abort = ""
        self._mirrors = Mirrors(handle, self._job)

    @property
    def saving(self) -> None:
        """It is this one."""
        return

    @property
    def carrying(self) -> None:  # type: ignore[override] - nothing is sent that could take disks along
        """None: memory goes into a file."""
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

    async def blockers(self) -> Sequence[Refusal]:
        """What speaks against saving it; its snapshots do not."""
        found = await survey(self._handle)
        self._mirrors.know(found.traits)
        if found.jobs:
            return found.jobs
        refusals = await ask(self._look)
        # With snapshots, libvirt's answer about a move would be about them.
        asked = () if found.snapshots else await looks.asked(self._handle, "save")
        return [*refusals, *asked]

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

    async def plan(self, target: Domain) -> Plan:  # noqa: ARG002 - nothing of it is changed
        """All that the save must know before: who restores it. Nobody attends that."""
        await attending.withdraw(self._handle.raw)
        return Plan(msgspec.msgpack.encode(SavePlan(hypervisor=self._handle.connection.uri)))

    async def arm(self, plane: DataPlane, **more: Any) -> None:
        """Listen, and arm the deadman."""
        await super().arm(plane, **more)
        self._mirrors.plane = plane

    async def start(self, ticket: Ticket, *, live: bool) -> None:  # noqa: ARG002 - see saving
        """Stop the guest."""
        plane = self._plane
        if plane is None or plane.local is None:
            raise HypervisorError("a machine is saved by a process of the host that it runs on")
        check_local(plane.local, ticket.uri)
        self._file = image_of_save(plane, str(self.domain.uuid), ticket.cookie)
        known = self._job.heard().known
        known.stopped_at = known.resumed_at = 0
        if self.was_running:
            await self._handle.suspend()
        self._stopped_at = time.monotonic_ns()

    async def continue_switchover(self) -> None:
        """Its disks are copied: have libvirt begin to write its memory."""
        text = snapshot_xml(self._file, parse(await ask(self._handle.raw.XMLDesc, 0)))
        self._writing = call(self._handle.raw.snapshotCreateXML, text, NO_METADATA)

    async def stopped(self) -> int:
        """It stood still before its memory was copied."""
        return self._stopped_at

    async def landed(self) -> bytes:
        """Wait until the file is whole, then tell the other half."""
        plane, writing = self._plane, self._writing
        if writing is None or plane is None or plane.local is None:
            raise HypervisorError("nothing is being saved")
        try:
            await asyncio.shield(writing)
        except RefusedError as error:
            reason = plain(error.message)
            raise HypervisorError(
                f"libvirt cannot save it: {reason}",
                device=device_of(self.domain, reason),
                remedy=self._what_to_do(reason),
            ) from error
        await self._check_now()
        kept = msgspec.msgpack.encode(await self._kept())
        async with connected_here(plane.local.socket) as connection:
            await asyncio.get_running_loop().sock_sendall(connection, kept)
        return b""

    def _what_to_do(self, reason: str) -> str:
        if _SAVED_BEFORE in reason:
            name = self.domain.name
            return f"let it run for a moment: virsh resume {name}; virsh suspend {name}"
        return "see whether there is room for it, and the log of libvirtd"

    async def _check_now(self) -> None:
        """Raise HypervisorError where the guest runs, or has run since it was stopped."""
        if await self._handle.state() in {State.RUNNING, State.BLOCKED}:
            raise let_run()
        await self.check_stood_still(time.monotonic_ns())

    async def check_stood_still(self, until: int) -> None:
        """See ``Machine``: libvirt lets anybody resume it, and tells of it unless it was lost."""
        known = self._job.heard().known
        if max(known.stopped_at, self._stopped_at) < known.resumed_at < until:
            raise let_run()

    async def _kept(self) -> LibvirtPlan:
        """What is needed to restore it: the XML that is in the file, and what is beside it."""
        handle = self._handle

        def ask_all() -> LibvirtPlan:
            raw = handle.raw
            written = handle.connection.raw.saveImageGetXMLDesc(self._file, IMAGE_XML_SECURE)
            parameters: dict[str, str | int | list[str]] = {
                Parameter.DEST_XML: attending.without_object(written)
            }
            if not handle.transient:
                parameters[Parameter.PERSIST_XML] = raw.XMLDesc(
                    XML_SECURE | XML_INACTIVE | XML_MIGRATABLE
                )
            return LibvirtPlan(
                transient=handle.transient,
                autostart=not handle.transient and bool(raw.autostart()),
                parameters=parameters,
            )

        return await ask(ask_all)

    async def abort(self) -> None:
        """Give the save up at whatever point: the guest runs here again, or stays paused."""
        await self._end_writing()
        await super().abort()
        # Not every process has come to note that disks were copied.
        left: list[str] = []
        for disk in self.domain.block:
            try:
                await self._mirrors.cancel(disk)
            except HypervisorError as error:  # its guest runs, whatever becomes of a copy
                left.append(str(error))
        self._after_abort = "; ".join(left)

    @property
    def after_abort(self) -> str:
        """Copies of its disks that libvirt has not ended."""
        return self._after_abort

    async def _end_writing(self) -> None:
        """End the snapshot; it may not have begun when it is asked to end, so it is asked again."""
        writing, deadline = self._writing, time.monotonic() + _ENDS_WITHIN
        while writing is not None and not writing.done() and time.monotonic() < deadline:
            with contextlib.suppress(RefusedError, LostError):
                await ask(self._handle.raw.abortJob)
            await asyncio.wait({writing}, timeout=_AGAIN)

    async def release(self) -> None:
        """The save has its name: the domain ends here, and its definition stays."""
        try:
            await self._end()
        except LostError:
            await self._handle.find_again()
            await self._end()
        await self._dismiss()

    async def _end(self) -> None:
        """End it, and have libvirtd not start it with its host, beside what is restored of it."""
        raw = self._handle.raw

        def stay_off() -> None:
            if raw.autostart():
                raw.setAutostart(0)

        await self._handle.end()
        if raw is not None and not self._handle.transient:
            try:
                await ask(stay_off)
            except RefusedError as error:
                if error.code != NO_DOMAIN:  # else it was undefined meanwhile, and starts nowhere
                    raise
            await in_thread(sync_definitions)


def snapshot_xml(file: str, live: ET.Element) -> str:
    """The XML of a snapshot that is memory alone.

    Args:
        file: Where that is written.
        live: The running domain's XML: each disk is told to be left as it is.
    """
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "memory", snapshot="external", file=file)
    disks = ET.SubElement(root, "disks")
    for disk in live.iterfind("devices/disk"):
        target = disk.find("target")
        if target is not None:
            ET.SubElement(disks, "disk", name=target.get("dev", ""), snapshot="no")
    return ET.tostring(root, encoding="unicode")


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

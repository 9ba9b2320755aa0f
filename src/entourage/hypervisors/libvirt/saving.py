"""A libvirt domain that runs here and is to be saved into a file of libvirt's.

libvirt's own save ends the domain in the moment in which its file is whole, when nothing else of
the save is. So memory is written as of an external snapshot without any disk: the file is the one
that ``virsh save`` makes, and the guest stays as it was, paused, until the save has its name.

    start    suspend
    continue_switchover  the snapshot, in a thread: libvirt writes the file; not before, for it
             begins none while it copies a disk
    landed   the file is whole: the other half is told, and what libvirt has written into it
    abort    end the snapshot's job: the guest runs here again
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.local import connected_here
from entourage.hypervisors.base import Plan, Ticket
from entourage.hypervisors.libvirt import attending, looks, saveimage
from entourage.hypervisors.libvirt.connection import LostError, RefusedError, ask, call
from entourage.hypervisors.libvirt.constants import (
    IMAGE_XML_SECURE,
    NO_METADATA,
    XML_INACTIVE,
    XML_MIGRATABLE,
    XML_SECURE,
    Parameter,
)
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.libvirt.save_source import SaveSource
from entourage.hypervisors.libvirt.sending import LibvirtSending
from entourage.hypervisors.libvirt.survey import Survey
from entourage.hypervisors.reach import check_local, image_of_save
from entourage.hypervisors.values import SavePlan
from entourage.steps import Refusal

_AGAIN = 0.1  # seconds between two attempts to end the snapshot's job
_ENDS_WITHIN = 10.0  # seconds for it to end; after them it is ended as a job that nobody waits for


class LibvirtSaving(SaveSource):
    """A domain of this host's libvirtd whose memory libvirt writes into a file.

    Args:
        handle: The domain, as libvirtd has it.
        log: Takes what the deadman says.
        host: This host's name, for refusals.
    """

    def __init__(self, handle: Handle, log: Path, host: str) -> None:
        super().__init__(handle, log, host)
        self._writing: asyncio.Future[Any] | None = None
        self._file = ""

    @property
    def sending(self) -> LibvirtSending:
        """Nothing of libvirt's file goes by a socket."""
        return LibvirtSending(self._handle, self._log, self._host)

    async def asked(self, found: Survey) -> Sequence[Refusal]:
        """What libvirt says: with snapshots, its answer about a move would be about them."""
        return () if found.snapshots else await looks.asked(self._handle, "save")

    async def plan(self, target: Domain) -> Plan:  # noqa: ARG002 - nothing of it is changed
        """All that the save must know before: who restores it. Nobody attends that."""
        await attending.withdraw(self._handle.raw)
        said = SavePlan(hypervisor=self._handle.connection.uri, turns=saveimage.TURNS)
        return Plan(msgspec.msgpack.encode(said))

    async def start(self, ticket: Ticket, *, live: bool) -> None:  # noqa: ARG002 - see saving
        """Stop the guest."""
        plane, local = self.plane_here()
        check_local(local, ticket.uri)
        self._file = image_of_save(plane, str(self.domain.uuid), ticket.cookie)
        await self.stop_guest()

    async def continue_switchover(self) -> None:
        """Its disks are copied: have libvirt begin to write its memory."""
        text = snapshot_xml(self._file, parse(await ask(self._handle.raw.XMLDesc, 0)))
        self._writing = call(self._handle.raw.snapshotCreateXML, text, NO_METADATA)

    async def stopped(self) -> int:
        """It stood still before its memory was copied."""
        return self._stopped_at

    async def landed(self) -> bytes:
        """Wait until the file is whole, then tell the other half."""
        writing = self._writing
        if writing is None:
            raise HypervisorError("nothing is being saved")
        try:
            await asyncio.shield(writing)
        except RefusedError as error:
            remedy = "see whether there is room for it, and the log of libvirtd"
            raise self.told(error, remedy) from error
        await self.check_still()
        kept = msgspec.msgpack.encode(await self._kept())
        async with connected_here(self.local().socket) as connection:
            await asyncio.get_running_loop().sock_sendall(connection, kept)
        return b""

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

        kept = await ask(ask_all)
        await self.check_devices(str(kept.parameters[Parameter.DEST_XML]))
        return kept

    async def disarm_deadman(self) -> None:
        """See ``LibvirtMachine``; nor does libvirtd start it with its host from then on."""
        if not self._handle.transient:
            try:
                await self._hold()
            except LostError:
                await self._handle.find_again()
                await self._hold()
        await super().disarm_deadman()
        await self.check_stood_still(time.monotonic_ns())

    async def _hold(self) -> None:
        if self._handle.raw is not None:  # else it was undefined meanwhile, and starts nowhere
            await self._handle.autostart.hold(self._handle.raw)

    async def abort(self) -> None:
        """Give the save up at whatever point: the guest runs here again, or stays paused."""
        await self._end_writing()
        await super().abort()

    async def _end_writing(self) -> None:
        """End the snapshot; it may not have begun when it is asked to end, so it is asked again."""
        writing, deadline = self._writing, time.monotonic() + _ENDS_WITHIN
        while writing is not None and not writing.done() and time.monotonic() < deadline:
            with contextlib.suppress(RefusedError, LostError):
                await ask(self._handle.raw.abortJob)
            await asyncio.wait({writing}, timeout=_AGAIN)


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

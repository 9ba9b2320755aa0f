"""A libvirt domain that runs here: the source's half of a migration."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from entourage.domain import Block, Net, Tpm
from entourage.errors import HypervisorError
from entourage.handover.values import Guest
from entourage.hypervisors import swtpm
from entourage.hypervisors.base import Capability, Export, TpmFacts
from entourage.hypervisors.files import digest
from entourage.hypervisors.libvirt.carrier import Carrier
from entourage.hypervisors.libvirt.connection import (
    LostError,
    RefusedError,
    ask,
    phases,
    tell_qemu,
)
from entourage.hypervisors.libvirt.constants import UNDEFINE_ALL, XML_MIGRATABLE, Flag, State
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.errors import device_of, plain
from entourage.steps import Refusal

CAPABILITIES = frozenset(
    {Capability.CARRY_TPM, Capability.CARRY_DISKS, Capability.ANNOUNCE, Capability.NON_LIVE}
)
TPM_STATES = Path("/var/lib/libvirt/swtpm")
_RELEASE_WITHIN = 30.0
# RARP packets of QEMU's: how many, and when (ms).
_ANNOUNCEMENT = {"initial": 50, "max": 550, "rounds": 5, "step": 100}


class LibvirtMachine(Carrier):
    """A domain of this host's libvirtd."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Disks and TPM travel with the memory."""
        return CAPABILITIES

    async def reattach(self, *, was_running: bool) -> Guest:
        """Take up a migration that another process began; what became of the guest here."""
        self._was_running = was_running
        if self._raw is None:
            return Guest.DEAD
        state: int = (await ask(self._raw.state, 0))[0]
        if state in {State.RUNNING, State.BLOCKED}:
            return Guest.RUNNING
        return Guest.STOPPED if state in {State.PAUSED, State.SUSPENDED} else Guest.DEAD

    async def close(self) -> None:
        """Let go of the machine without changing it."""
        await self._tidied()
        if self._feed is not None:
            await self._feed.close()
        if self._deadman is not None:
            self._deadman.close()
        if self._calls is not None:
            self._calls.close()
        await self._connection.close()

    async def facts(self) -> Mapping[str, str]:
        """Versions, what the machine is made of, the CPU, digests of the boot files."""
        raw = self._connection.raw
        xml = parse(await ask(self._raw.XMLDesc, XML_MIGRATABLE))
        kind, cpu = xml.find("os/type"), xml.find("cpu")
        found = {
            "libvirt": str(await ask(raw.getLibVersion)),
            "qemu": str(await ask(raw.getVersion)),
            "emulator": xml.findtext("devices/emulator", ""),
            "arch": kind.get("arch", "") if kind is not None else "",
            "virt": xml.get("type", ""),
            "cpu": _text(cpu),
            "networks": json.dumps([net.network for net in self.domain.net if net.network]),
        }
        for path in self.domain.boot.files:
            found[f"sha256:{path}"] = await asyncio.to_thread(digest, path)
        return found

    async def blockers(self) -> Sequence[Refusal]:
        """What libvirt itself has against it: it is asked by a Begin that begins nothing."""
        host = socket.gethostname()
        try:
            library = await asyncio.to_thread(phases)
            await ask(library.begin, self._raw, {}, Flag.LIVE | Flag.UNSAFE)
        except RefusedError as error:
            reason = plain(error.message)
            return [
                Refusal(
                    device_of(self.domain, reason) or "domain",
                    host,
                    f"libvirt cannot move it: {reason}",
                    "take out of the domain what it names, and try again",
                )
            ]
        return []

    async def died(self) -> str:
        """Returns, with the reason, when the machine is gone; never before.

        That libvirtd has gone is no such thing: its machines live on without it.
        """
        feed = self._feed
        if feed is None:
            await asyncio.get_running_loop().create_future()
        try:
            return await self._heard().until(lambda known: known.ended or None)
        except HypervisorError:
            return await asyncio.get_running_loop().create_future()

    # Operations for controllers

    async def mirror(self, disk: Block, export: Export, *, top_only: bool) -> None:  # noqa: ARG002 - see CAPABILITIES
        """It does not: disks are carried."""
        raise HypervisorError("libvirt mirrors no disk by itself", device=disk.label)

    async def complete_mirror(self, disk: Block) -> None:
        """Nothing: Perform has done it."""

    async def cancel_mirror(self, disk: Block) -> None:
        """Nothing: it ends with the job."""

    async def tpm_facts(self) -> TpmFacts:
        """What this host's swtpm can do."""
        if any(tpm.type == "emulator" for tpm in self.domain.tpm):
            return await swtpm.facts()
        return TpmFacts()

    async def erase_tpm(self, tpm: Tpm) -> None:
        """After ``release``, in which libvirt has erased it: see that it has.

        Raises:
            HypervisorError: It has not.
        """
        there = TPM_STATES / str(self.domain.uuid)
        if there.is_dir() and any(there.rglob("*.permall")):
            raise HypervisorError(
                f"libvirt has left the TPM's state in {there}",
                device=tpm.label,
                remedy="erase it, unless both hosts share that directory",
            )

    async def announce(self, nets: Sequence[Net]) -> None:
        """The guest is back: QEMU has announced it at the target, and so must here again.

        libvirt has no word for it: see ``tell_qemu``.
        """
        if nets and self._raw is not None:
            await tell_qemu(self._raw, "announce-self", **_ANNOUNCEMENT)

    # The end

    async def halt(self) -> None:
        """Stop the guest and keep it: it was found running without a right to."""
        if self._raw is not None:
            await ask(self._raw.suspend)

    async def release(self) -> None:
        """Confirm: the copy here ends; where libvirtd has forgotten the migration, by hand."""
        begun, self._beginning = self._beginning, None
        try:
            if begun is not None:
                try:
                    await ask(
                        phases().confirm,
                        self._raw, self._parameters, b"", self._flags, cancelled=False,
                    )  # fmt: skip
                except RefusedError:
                    await self._destroy()
            else:
                await self._destroy()
        except LostError:
            await self._find_again()
            await self._destroy()
        await self._dismiss()

    async def _destroy(self) -> None:
        """End it and forget its definition; what is gone already is no error."""
        if self._raw is None:
            return
        with contextlib.suppress(RefusedError):  # it does not run
            await ask(self._raw.destroy)
        with contextlib.suppress(RefusedError):  # it has no definition
            await ask(self._raw.undefineFlags, UNDEFINE_ALL)
        state = State.NONE
        with contextlib.suppress(RefusedError):
            state = (await ask(self._raw.state, 0))[0]
        if state in {State.RUNNING, State.PAUSED, State.BLOCKED}:
            raise HypervisorError(
                f"libvirt does not end {self.domain.name}", remedy="virsh destroy it"
            )


def _text(cpu: ET.Element | None) -> str:
    return "" if cpu is None else ET.tostring(cpu, encoding="unicode")

"""Another machine, made of a save: with a name, a UUID and MACs of its own.

Nothing is claimed: whoever restores the save itself is not kept from it, for it is another machine
that goes on here. So it must have nothing of the first one's but what is in the save, or is only
read: its disks are copied out of it, and it has no TPM.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from entourage.domain import Domain, Net
from entourage.hypervisors.base import Plan
from entourage.hypervisors.saved.descriptor import Identity
from entourage.hypervisors.saved.machine import SavedMachine, broken_seals
from entourage.hypervisors.saved.manifest import Manifest
from entourage.hypervisors.saved.written import WrittenMachine
from entourage.hypervisors.values import ANOTHER, RESTORES, RestorePlan
from entourage.settings.units import format_size
from entourage.steps import Refusal

_OUI = "52:54:00"  # as QEMU's own


def renamed(domain: Domain, identity: Identity) -> Domain:
    """The domain as another one: its NICs have MACs and taps of their own.

    Args:
        domain: As it was saved.
        identity: Whose it is to be.
    """
    nets = tuple(
        msgspec.structs.replace(nic, mac=_mac(identity.uuid, nic), tap=None) for nic in domain.net
    )
    return msgspec.structs.replace(domain, name=identity.name, uuid=identity.uuid, net=nets)


def _mac(uuid: str, nic: Net) -> str:
    digest = hashlib.sha256(f"{uuid}/{nic.id}".encode()).hexdigest()
    return ":".join((_OUI, digest[0:2], digest[2:4], digest[4:6]))


def shared(manifest: Manifest, host: str) -> list[Refusal]:
    """What of the first machine another one would have as well, and why that cannot be.

    Args:
        manifest: Of the save.
        host: This host's name, for refusals.
    """
    return [Refusal(device, host, *problem) for device, problem in _shared(manifest)]


def _shared(manifest: Manifest) -> Iterator[tuple[str, tuple[str, str]]]:
    domain = manifest.domain
    copied = manifest.copied
    for disk in domain.block:
        if disk.label not in copied and not disk.is_only_read:
            reason = f"it is {domain.name}'s, which stays with it: it is not copied into the save"
            yield disk.label, (reason, "save it with --disks=copy, or with --checkpoint")
    for tpm in domain.tpm:
        reason = (
            f"it is {domain.name}'s: its keys and its counters are in the save's memory, and come"
            " back with that into any TPM that would be there"
        )
        yield tpm.label, (reason, "no other machine can be made of a save with a TPM")
    for device in domain.external:
        reason = f"it is {domain.name}'s, and whether there may be two of it is not known"
        yield device.label, (reason, "save one without it")


class AnotherMachine(SavedMachine):
    """The machine that is made of a save, standing still; see the module."""

    def become(self, identity: Identity) -> None:
        """Be that one; before anything is asked of it."""
        self._domain = renamed(self._domain, identity)

    def first_mac(self, label: str) -> str | None:
        """The MAC that a NIC had as it was saved: the guest has it in its memory."""
        nic = self._manifest.domain.device(label)
        return nic.mac if isinstance(nic, Net) else None

    async def blockers(self) -> Sequence[Refusal]:
        """What it would share with the first one, a medium that has changed."""
        broken = await self._storage.do(broken_seals, self._manifest)
        return [*shared(self._manifest, socket.gethostname()), *broken]

    async def disarm_deadman(self) -> None:
        """Nothing is claimed; what TEST has seen is looked at again."""
        await self._look_again()

    async def release(self) -> None:
        """It runs; the save is what it was."""
        await self.close()

    async def abort(self) -> None:
        """It was never let run; the save is what it was."""
        await self.close()


class AnotherWrittenMachine(AnotherMachine, WrittenMachine):
    """The same of a save whose memory its hypervisor reads itself: from a copy, as the other one's.

    The copy is made beside the save, for as long as memory is read.
    """

    async def facts(self) -> Mapping[str, str]:
        """What the hypervisor that it was saved in said of itself; of the first machine."""
        return {**await super().facts(), RESTORES: ANOTHER}

    async def plan(self, target: Domain) -> Plan:
        """The same, and whose it was."""
        plan = msgspec.msgpack.decode(await super().plan(target), type=RestorePlan)
        first = msgspec.structs.replace(plan, first=self._manifest.domain)
        return Plan(msgspec.msgpack.encode(first))

    async def blockers(self) -> Sequence[Refusal]:
        """And that there is no room for the copy."""
        found = [*await super().blockers()]
        parent, need = self._directory.parent, self._manifest.memory.size
        space = await self._storage.do(os.statvfs, parent)
        if (free := space.f_bavail * space.f_frsize) < need:
            reason = (
                f"no room in {parent} for a copy of memory with another name in it:"
                f" {format_size(need)} may be needed, {format_size(free)} free"
            )
            found.append(Refusal("memory", socket.gethostname(), reason, "make room there"))
        return found

"""A Xen domain that runs here: the source's half of a migration."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entourage.domain import Block, Device, Net, Tpm
from entourage.errors import HypervisorError
from entourage.hypervisors.base import Export, TpmFacts, Verb
from entourage.hypervisors.files import digest
from entourage.hypervisors.xen.announce import announce
from entourage.hypervisors.xen.carrier import Carrier
from entourage.hypervisors.xen.configuration import domain_type, unreadable_disks
from entourage.hypervisors.xen.sender import Word
from entourage.hypervisors.xen.xl import xl
from entourage.protocol import Guest
from entourage.steps import Refusal

VERBS = frozenset({Verb.CARRY_RAW, Verb.ANNOUNCE})
_SECTOR = 512
_RELEASES_WITHIN = 60.0


class XenMachine(Carrier):
    """A domain of this dom0."""

    @property
    def verbs(self) -> frozenset[Verb]:
        """Raw disks are copied beside the memory."""
        return VERBS

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
        for disk in self._domain.block:
            path = Path(disk.path)
            if path.is_file() and path.stat().st_size % _SECTOR:
                reason = f"{disk.path} does not end with a whole sector"
                found.append((disk.label, reason, f"truncate -s %{_SECTOR} {disk.path}"))
        return [Refusal(device, host, reason, remedy) for device, reason, remedy in found]

    async def died(self) -> str:
        """Returns, with the reason, when the domain is gone; never before."""
        await self._until_gone()
        return "xl knows it no more"

    # Verbs for controllers

    async def mirror(self, disk: Block, export: Export, *, top_only: bool) -> None:  # noqa: ARG002 - see VERBS
        """It does not: disks are carried."""
        raise HypervisorError("Xen mirrors no disk by itself", device=disk.label)

    async def settle(self, disk: Block) -> None:
        """Nothing: the carrier has it."""

    async def unmirror(self, disk: Block) -> None:
        """Nothing: a copy ends with the migration."""

    async def tpm_facts(self) -> TpmFacts:
        """Nothing: a vTPM is another domain, and an external tool's to move."""
        return TpmFacts()

    async def erase_tpm(self, tpm: Tpm) -> None:
        """Nothing: see ``tpm_facts``."""

    async def unplug(self, device: Device) -> None:
        """Not a verb of this backend."""
        raise HypervisorError("Xen domains are not unplugged here", device=device.label)

    async def plug(self, device: Device) -> None:
        """Not a verb of this backend."""
        raise HypervisorError("Xen domains are not plugged here", device=device.label)

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


async def info(*wanted: str) -> dict[str, str]:
    """Some lines of ``xl info``."""
    said: dict[str, str] = {}
    for line in (await xl("info")).splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() in wanted:
            said[key.strip()] = value.strip()
    return said


def _true(config: dict[str, Any], key: str) -> bool:
    """A ``libxl_defbool`` of JSON."""
    return str(config.get(key, "")).lower() in {"true", "1"}

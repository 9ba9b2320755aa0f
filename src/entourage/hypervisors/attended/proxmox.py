"""Proxmox VE as the toolstack of attended migrations: ``qm migrate``, and its web interface.

What is said here of Proxmox stands in its documentation and its sources. It was tried against a
stand-in for ``qm`` only.

* A VM's configuration is ``nodes/NODE/qemu-server/VMID.conf`` in the cluster's file system, which
  each node has at ``/etc/pve``. NODE is the one that has the VM: at the end of a migration the file
  is moved. Meanwhile it has ``lock: migrate``.
* The VM's guest hookscript is called on the target too, with ``PVE_MIGRATED_FROM`` in its
  environment: in ``pre-start`` it may refuse, and in ``post-start`` QEMU waits for the stream.
* ``qm monitor`` reads lines for QEMU's human monitor, of VMs whose configuration is this node's.
  On the target it is not yet, so the QEMU there is told by its own socket.
* Nobody is told when a guest stops, or runs: it is looked at.
* QEMU's return path is off. A source that has sent all is done, whatever its target makes of it,
  and is then ended: a guest whose Load is refused would be lost. So Save is answered after GO.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket as sockets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from entourage.domain import Domain
from entourage.errors import HypervisorError, plain_words, what_to_do
from entourage.hypervisors.attended.monitor import by_qm, by_socket
from entourage.hypervisors.attended.proxmox_agent import QmGuestAgent
from entourage.hypervisors.attended.proxmox_commands import commands_of
from entourage.hypervisors.attended.proxmox_files import ANSWERS_WITHIN, ClusterFiles
from entourage.hypervisors.attended.proxmox_notes import Notes, refused
from entourage.hypervisors.attended.switchover import ID
from entourage.hypervisors.attended.toolstack import (
    OBJECT,
    Arriving,
    Commands,
    Note,
    Shown,
)
from entourage.hypervisors.guestexec import short
from entourage.hypervisors.side import read_side, with_side
from entourage.hypervisors.understood import understood
from entourage.hypervisors.values import MemoryProgress

_VMID: Final = re.compile(r"[1-9][0-9]{2,8}")
_NODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LOOK_EVERY = 2.0  # seconds, at all configurations
_MEBI = 1 << 20
_NOTHING = MemoryProgress(remaining=0, total=0, dirty_rate=0.0, rate=0.0, iteration=0)


@dataclass(frozen=True, slots=True)
class Vm:
    """One VM of the cluster.

    Attributes:
        vmid: Its number.
        node: The node that has it.
        keys: Its configuration, without its snapshots'.
    """

    vmid: str
    node: str
    keys: Mapping[str, str]

    @property
    def uuid(self) -> str:
        """Of its SMBIOS; empty where it has none."""
        found = re.search(r"(?:^|,)uuid=([0-9A-Fa-f-]+)", self.keys.get("smbios1", ""))
        return found[1].lower() if found and _UUID.fullmatch(found[1].lower()) else ""

    @property
    def name(self) -> str:
        """What its user calls it."""
        return self.keys.get("name") or f"vm-{self.vmid}"

    @property
    def memory(self) -> int:
        """Bytes."""
        found = re.match(r"(?:current=)?(\d{1,9})", self.keys.get("memory", ""))
        return (int(found[1]) if found else 512) * _MEBI


class _Said(msgspec.Struct, frozen=True, kw_only=True):
    """What the hookscript has to say of a VM that is about to come.

    Attributes:
        vmid: Its number.
        source: ``PVE_MIGRATED_FROM``, the node that has it.
    """

    vmid: str
    source: str


class UnheardWatch:
    """Nothing is heard of a VM by itself: whoever waits must look."""

    async def switches(self) -> int:
        """Never returns: QEMU's Save tells of the stop."""
        return await _never()

    async def resumed(self) -> int:
        """Nothing is heard: that a VM is off does not say that it has not run."""
        raise HypervisorError("nothing is heard of it")

    async def ended(self) -> str:
        """Never returns."""
        return await _never()

    async def given_up(self) -> str:
        """Never returns: the lock in its configuration tells of it."""
        return await _never()

    async def news(self) -> None:
        """Never returns."""
        await _never()

    async def close(self) -> None:
        """Nothing is open."""


async def _never() -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


class ProxmoxToolstack:
    """One node.

    Args:
        etc: The cluster's file system.
        run: Where QEMU's sockets and process ids are.
        node: This node's name; None: this host's.
    """

    def __init__(
        self,
        etc: Path = Path("/etc/pve"),
        run: Path = Path("/run/qemu-server"),
        node: str | None = None,
    ) -> None:
        self.way_back = False
        self._etc = etc
        self._run = run
        self._host = node or sockets.gethostname()
        self._node = self._host.partition(".")[0]
        self._files = ClusterFiles()
        self._notes = Notes(etc / "priv" / "entourage")

    # What is shown

    async def running(self) -> Sequence[str]:
        """The UUIDs of all VMs that run on this node."""
        return await self._files.ask(self._running)

    def _running(self) -> list[str]:
        return [vm.uuid for vm in self._all(self._node) if vm.uuid and self._runs(vm)]

    async def read(self, uuid: str) -> Domain:
        """A VM, with what its user has written for it; its own devices are Proxmox's business."""
        vm = await self._found(uuid)
        plain = Domain(name=vm.name, uuid=uuid, memory=vm.memory)
        return with_side(plain, read_side(vm.name, ""))

    async def changes(self) -> AsyncIterator[str]:
        """The UUIDs of VMs that have started, ended or arrived; empty: look at all of them."""
        known: dict[str, tuple[bool, bool]] = {}
        yield ""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                now = await self._files.ask(self._seen)
            except HypervisorError:
                continue  # the cluster's file system comes back
            for uuid in sorted({*now, *known}):
                if now.get(uuid) != known.get(uuid):
                    yield uuid
            known = now

    def _seen(self) -> dict[str, tuple[bool, bool]]:
        vms = self._all(self._node)
        return {vm.uuid: (self._runs(vm), "lock" in vm.keys) for vm in vms if vm.uuid}

    async def shown(self, uuid: str) -> Shown:
        """A VM's state here."""
        # Twice: a VM that goes from node to node meanwhile may be seen under neither.
        ask = self._files.ask
        if not (await ask(self._having, uuid) or await ask(self._having, uuid)):
            return Shown.ABSENT
        vm = await self._found(uuid)
        here = vm.node == self._node
        if not self._runs(vm):
            return Shown.IDLE if here else Shown.ABSENT  # Proxmox keeps no record of why
        if not here:  # on its way in, or handed over, and not ended yet
            return Shown.HELD
        told = await self._told(vm, "info status")
        if "VM status: running" in told:
            return Shown.RUNNING
        held = re.search(r"paused \((?:inmigrate|postmigrate|finish-migrate|prelaunch)\)", told)
        return Shown.HELD if held else Shown.PAUSED

    async def watch(self, uuid: str) -> UnheardWatch:  # noqa: ARG002 - see Toolstack
        """Nothing is heard of it."""
        return UnheardWatch()

    async def migrates(self, uuid: str) -> bool:
        """Whether a migration of it from here is under way: its configuration says so."""
        vm = await self._found(uuid)
        return vm.node == self._node and vm.keys.get("lock") == "migrate"

    async def progress(self, uuid: str) -> MemoryProgress:  # noqa: ARG002 - see Toolstack
        """Not asked: each question would be a process."""
        return _NOTHING

    async def commands(self, domain: Domain) -> Commands:
        """Of ``qm``."""
        vm = None
        with contextlib.suppress(HypervisorError):
            vm = await self._found(domain.uuid or "")
        if vm is None:
            return commands_of("VMID", self._run)
        elsewhere = vm.node if vm.node != self._node else ""
        return commands_of(vm.vmid, self._run, vm.keys.get("lock", ""), elsewhere)

    def guest_agent(self, domain: Domain) -> QmGuestAgent:
        """By ``qm``, which has a way to it."""

        async def vmid() -> str:
            return (await self._found(domain.uuid or "")).vmid

        async def paused() -> bool:
            return await self.shown(domain.uuid or "") is Shown.PAUSED

        return QmGuestAgent(vmid, paused)

    async def owner(self) -> int:
        """Root: as whom Proxmox runs QEMU."""
        return 0

    # What is done

    async def give_up(self, uuid: str) -> None:
        """End a migration that is under way."""
        if await self.migrates(uuid):
            await self._do(await self._found(uuid), "migrate_cancel")

    async def add_object(self, uuid: str, socket: str) -> None:
        """Add QEMU's object to a VM that runs here, or is about to come."""
        await self.remove_object(uuid)
        await self._do(
            await self._found(uuid),
            f"object_add dbus-vmstate,id={OBJECT},addr=unix:path={socket},id-list={ID}",
        )

    async def remove_object(self, uuid: str) -> None:
        """Take it away; none is no error."""
        with contextlib.suppress(HypervisorError):
            await self._told(await self._found(uuid), f"object_del {OBJECT}")

    async def write_note(self, uuid: str, note: Note | None) -> None:
        """Write a note where each node reads it; None removes it."""
        try:
            vm = await self._found(uuid)
        except HypervisorError:
            if note is None:
                return
            raise
        await self._files.do(self._notes.write, vm.vmid, uuid, note)

    async def clear_notes(self) -> None:
        """Remove this node's notes of VMs that were ended here, or removed altogether."""
        await self._files.do(self._notes.clear, self._host, self._note_stays)

    def _note_stays(self, vmid: str, uuid: str) -> bool:
        """Whether a VM runs here, or is another node's now, which writes a note of its own."""
        mine = [vm for vm in self._having(uuid) if vm.vmid == vmid]
        return any(vm.node != self._node or self._runs(vm) for vm in mine)

    async def note(self, uuid: str) -> Note | None:
        """The note that is there; None where there is none."""
        vm = await self._found(uuid)
        return await self._files.ask(self._notes.read, vm.vmid, uuid)

    # What the hookscript says

    async def arriving(self, description: str) -> Arriving:
        """What the hookscript was given: the VM's number, and the node that it comes from."""
        with understood("what the hookscript says"):
            coming = msgspec.json.decode(description, type=_Said)
        if not _VMID.fullmatch(coming.vmid) or not _NODE.fullmatch(coming.source):
            raise HypervisorError("what the hookscript says names no VM, or no node")
        return await self._files.ask(self._coming, coming)

    def _coming(self, coming: _Said) -> Arriving:
        vm = self._read(coming.source, coming.vmid)
        if vm is None or not vm.uuid:
            raise HypervisorError(
                f"the configuration of VM {coming.vmid} on {coming.source} has no UUID",
                remedy=f"qm set {coming.vmid} --smbios1 uuid=$(uuidgen)",
            )
        note = self._notes.read(vm.vmid, vm.uuid)
        if note is not None and note.host.partition(".")[0] != coming.source:
            note = None  # of an earlier node's: nobody attends it where it is now
        return Arriving(name=vm.name, uuid=vm.uuid, note=note)

    def with_object(self, description: str, socket: str) -> str:  # noqa: ARG002 - see Toolstack
        """Nothing: QEMU is given its object when it waits for the stream (``post-start``)."""
        return ""

    # Below

    def _all(self, node: str = "") -> list[Vm]:
        """Not by a pattern: that takes what cannot be read for what is not there."""
        nodes, paths = self._etc / "nodes", list[Path]()
        for each in [nodes / node] if node else list(nodes.iterdir()):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                paths += (each / "qemu-server").iterdir()
        found = [self._read(path.parts[-3], path.stem) for path in paths if path.suffix == ".conf"]
        return [vm for vm in found if vm is not None]

    def _read(self, node: str, vmid: str) -> Vm | None:
        """One VM; None where it has gone meanwhile, to another node perhaps."""
        path = self._etc / "nodes" / node / "qemu-server" / f"{vmid}.conf"
        if not _VMID.fullmatch(vmid):
            return None
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise refused(path, error) from error
        own = text.partition("\n[")[0]  # what follows are its snapshots
        lines = (line.partition(":") for line in own.splitlines() if not line.startswith("#"))
        return Vm(vmid, node, {key.strip(): value.strip() for key, _, value in lines if key})

    def _having(self, uuid: str) -> list[Vm]:
        """Those of the cluster that have a UUID; raises HypervisorError where it cannot be read."""
        nodes = self._etc / "nodes"
        try:
            return [vm for vm in self._all() if vm.uuid == uuid]
        except FileNotFoundError as error:
            why = f"{nodes} is not there"
            raise HypervisorError(why, remedy="systemctl status pve-cluster") from error

    async def _found(self, uuid: str) -> Vm:
        """One VM; raises HypervisorError where there is none, or the cluster does not answer."""
        return await self._files.ask(self._vm, uuid)

    def _vm(self, uuid: str) -> Vm:
        found = self._having(uuid)
        if len(found) != 1:
            raise HypervisorError(
                f"{len(found)} VMs of the cluster have the UUID {uuid}",
                remedy="`qm set VMID --smbios1 uuid=…` gives one of them another" if found else "",
            )
        return found[0]

    def _runs(self, vm: Vm) -> bool:
        """Whether its QEMU runs on this node, whose command line names the file of its id."""
        try:
            pid = int((self._run / f"{vm.vmid}.pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return False
        name = f"/{vm.vmid}.pid".encode()
        return any(
            word == b"-pidfile" and path.endswith(name) for word, path in itertools.pairwise(words)
        )

    async def _do(self, vm: Vm, command: str) -> None:
        """Have QEMU's monitor do something about which it says nothing where it succeeds."""
        if said := await self._told(vm, command):
            raise HypervisorError(
                f"QEMU of VM {vm.vmid} says: {short(said)}",
                remedy="where it has another dbus-vmstate object, as for a migration with"
                " conntrack's state, it takes no second one",
            )

    async def _told(self, vm: Vm, command: str) -> str:
        """What QEMU's monitor says to a command."""
        try:
            async with asyncio.timeout(ANSWERS_WITHIN):
                if vm.node == self._node:
                    return await by_qm(vm.vmid, command)
                return await by_socket(self._run / f"{vm.vmid}.qmp", command)
        except (OSError, ValueError) as error:  # also where it takes too long
            why = f"the monitor of VM {vm.vmid} cannot be asked: {plain_words(error)}"
            raise HypervisorError(why, remedy=what_to_do(error)) from error

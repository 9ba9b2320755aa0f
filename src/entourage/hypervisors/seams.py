"""What a hypervisor's backend has or has not, beside what every ``Machine`` and ``Incoming`` has.

Each is a protocol of its own. A machine has it in an attribute, ``machine.mirroring`` say, which is
None where the backend cannot do that: whoever needs it looks there, and refuses at TEST. All of
their methods raise HypervisorError where the hypervisor says no.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from entourage.domain import Block, Net, Pci, Tpm, Usb
from entourage.errors import HypervisorError
from entourage.hosts.parts import HostPart, PartsCheck
from entourage.hypervisors.agentless import Agentless
from entourage.hypervisors.values import Export, Plan, TpmFacts
from entourage.steps import Planned, Refusal

if TYPE_CHECKING:
    from entourage.hypervisors.base import Machine

HostDevice: TypeAlias = Usb | Pci
"""One of the host's own, which no hypervisor can carry: it is taken out, and another plugged in."""
Objection: TypeAlias = tuple[str, str]
"""What is wrong, and what to do about it."""


class DiskCopy(enum.StrEnum):
    """How a disk is copied. Both hosts' hypervisors must know the same way."""

    MIRROR = "mirror"
    MIRROR_READONLY = "mirror-readonly"
    CARRY = "carry-disks"
    CARRY_RAW = "carry-raw"
    """Only raw images and devices; read-only ones too."""


class Changed(NamedTuple):
    """What is known of a disk since a checkpoint.

    Attributes:
        written: Bytes that were written, at most.
        size: Of the disk, as its guest sees it now; bytes.
    """

    written: int
    size: int


class DiskMirroring(Protocol):
    """Copies disks one by one, and each write of the guest's to both hosts; on the source."""

    @property
    def ways(self) -> frozenset[DiskCopy]:
        """``MIRROR``, and perhaps ``MIRROR_READONLY``."""
        ...

    def objections(self, disk: Block) -> Sequence[Objection]:
        """In TEST: what speaks against ``mirror`` of this disk."""
        ...

    async def mirror(self, disk: Block, export: Export, *, top_only: bool) -> None:
        """Copy the disk to the export and keep it so; returns when both are the same.

        Args:
            disk: The disk.
            export: Where the target takes the writes.
            top_only: Copy only the top image of a backing chain.
        """
        ...

    async def changed(self, disk: Block, mark: str) -> Changed | None:
        """In TEST: what was written since the checkpoint with that mark; None: it is not known."""
        ...

    async def kept(self) -> None:
        """The guest goes on, and the checkpoint is kept: what is written after it can be known."""
        ...

    def progress(self, disk: Block) -> tuple[int, int]:
        """Bytes done and in total, as last heard; (0, 0) where no mirror runs."""
        ...

    async def complete(self, disk: Block) -> None:
        """The guest has stopped: complete the mirror; each host then has its own disk."""
        ...

    async def cancel(self, disk: Block) -> None:
        """Cancel the mirror in whatever state it is, also if its connection is dead.

        No error where no mirror runs (any more): ``mirror`` may have failed half-way.
        """
        ...


class DiskCarrying(Protocol):
    """The carrier copies disks by itself, within ``Machine.start``; on the source."""

    @property
    def way(self) -> DiskCopy:
        """``CARRY`` or ``CARRY_RAW``."""
        ...

    def objections(self, disk: Block) -> Sequence[Objection]:
        """In TEST: what speaks against ``carry`` of this disk, which would be copied."""
        ...

    def may_leave_out(self, disk: Block) -> bool:
        """In TEST: whether its user lets it go where the target has no such medium."""
        ...

    def carry(self, disk: Block, *, top_only: bool) -> None:
        """In PREPARE, before ``Machine.plan``: ``start`` is to copy this disk.

        Args:
            disk: The disk.
            top_only: Copy only the top image of a backing chain.
        """
        ...

    def progress(self, disk: Block) -> tuple[int, int]:
        """Bytes done and in total, as last heard; (0, 0) where it is not copied."""
        ...


class DiskExports(Protocol):
    """The other half of ``DiskMirroring``, on the target."""

    async def export(self, disk: Block) -> Export:
        """Open a disk of the built machine for the mirror's writes."""
        ...


class TpmState(Protocol):
    """The state of an emulated TPM travels with the memory; on the source."""

    @property
    def stays(self) -> bool:
        """Whether the state stays on this host as well: it is part of what its user keeps here."""
        ...

    async def facts(self) -> TpmFacts:
        """What the TPM emulator that this machine uses can do."""
        ...

    async def erase(self, tpm: Tpm) -> None:
        """After ``Machine.release``: destroy the state on this host; nothing left is no error."""
        ...


class TpmArrival(Protocol):
    """The other half of ``TpmState``, on the target."""

    async def facts(self) -> TpmFacts:
        """What the TPM emulator of this host can do; can be asked before ``Incoming.build``."""
        ...

    async def sync(self, tpm: Tpm) -> None:
        """Flush the TPM's state, file and directory, to this host's disk."""
        ...


class Announcing(Protocol):
    """Tells the network where the guest is, on either host."""

    async def announce(self, nets: Sequence[Net]) -> None:
        """Tell it where the guest's MACs are (RARP or gratuitous ARP)."""
        ...


class Unplugging(Protocol):
    """Takes the host's own USB and PCI devices out of the guest before it leaves; on the source."""

    async def test_unplug(self, device: HostDevice) -> Sequence[Objection]:
        """Why this device cannot be taken out of the running guest; touches nothing."""
        ...

    async def unplug(self, device: HostDevice) -> None:
        """Take it out, and return when the guest has let go; out already is no error."""
        ...

    async def plug(self, device: HostDevice) -> None:
        """Give the guest its device back; there already is no error.

        The error's remedy is what the user can type instead, on this host.
        """
        ...


class Plugging(Protocol):
    """The other half of ``Unplugging``: plugs the target's own in, on arrival."""

    async def test_plug(self, device: HostDevice) -> Sequence[Objection]:
        """Why ``device.plug`` of this host cannot be plugged into a guest; touches nothing."""
        ...

    async def plug(self, device: HostDevice) -> None:
        """The guest runs: plug ``device.plug`` of this host in; there already is no error.

        The error's remedy is what the user can type instead, on this host.
        """
        ...


class GuestAgent(Protocol):
    """Runs programs in the guest, which has an agent for that; on either host."""

    async def objections(self) -> Sequence[Objection]:
        """Why nothing can be run in the guest now."""
        ...

    async def run(self, program: str, words: Sequence[str]) -> None:
        """Run a program in the running guest, and wait for its end.

        Args:
            program: Its path there.
            words: Its arguments.

        Raises:
            HypervisorError: It cannot be run, fails, or takes too long; what it said is in it.
        """
        ...


class NoGuest:
    """The agent of a guest that lies in a save: there is nobody to be told."""

    async def objections(self) -> Sequence[Objection]:
        """None."""
        return ()

    async def run(self, program: str, words: Sequence[str]) -> None:
        """Nothing."""


class Publishing(Protocol):
    """Keeps what has landed, while the guest goes on where it was: a checkpoint; on the target."""

    async def publish(self) -> None:
        """Memory has landed: have all of it on the disk under its name; that is not undone."""
        ...


class MachineSeams:
    """The seams of a ``Machine`` whose backend has none; it overrides those that it has."""

    generation = 0

    @property
    def saving(self) -> Machine | None:
        """It is saved as it is moved."""
        return None

    @property
    def sending(self) -> Machine | None:
        """It is saved in one way."""
        return None

    @property
    def after_abort(self) -> str:
        """Everything is as it was."""
        return ""

    @property
    def before_memory(self) -> bytes:
        """All was said as it was planned."""
        return b""

    async def go_on(self) -> None:
        """Nothing stops its guest for full storage."""

    def begin_to_examine(self) -> None:
        """Nothing of it takes long to be seen."""

    async def examine(self) -> Sequence[Refusal]:
        """Nothing of it takes long to be seen."""
        return ()

    async def at_fault(self) -> HypervisorError | None:
        """A machine that runs sends what is in it."""
        return None

    async def keep_definition(self) -> None:
        """Nothing of that was changed."""

    async def check_stood_still(self, until: int) -> None:
        """Nobody but its own process lets it run."""

    def stay_paused(self) -> None:
        """A guest that never runs here is not let run."""

    @property
    def definition(self) -> Planned | None:
        """Nothing is written down of the domain."""
        return None

    def encrypts(
        self,
        offers: Mapping[str, str] | None,  # noqa: ARG002 - see base.Machine
        *,
        wanted: bool,
    ) -> bool | None:
        """As it was asked for."""
        return wanted

    @property
    def mirroring(self) -> DiskMirroring | None:
        """It copies no disk while the guest writes to it, but for what it carries."""
        return None

    @property
    def carrying(self) -> DiskCarrying | None:
        """No disk travels with the memory."""
        return None

    @property
    def tpm(self) -> TpmState | None:
        """No TPM's state travels with the memory."""
        return None

    @property
    def announcing(self) -> Announcing | None:
        """The network learns from the guest itself that it is back."""
        return None

    @property
    def unplugging(self) -> Unplugging | None:
        """The host's own devices cannot be taken out of a running guest."""
        return None

    @property
    def guest_agent(self) -> GuestAgent | None:
        """Nothing can be run in the guest."""
        return None


class IncomingSeams:
    """The seams of an ``Incoming`` whose backend has none; it overrides those that it has."""

    is_save = False

    @property
    def takes(self) -> frozenset[DiskCopy]:
        """No disk can be copied to here."""
        return frozenset()

    @property
    def exports(self) -> DiskExports | None:
        """Disks that are mirrored cannot come here."""
        return None

    @property
    def tpm(self) -> TpmArrival | None:
        """No TPM's state is taken."""
        return None

    @property
    def announcing(self) -> Announcing | None:
        """The network learns from the guest itself that it is here."""
        return None

    @property
    def plugging(self) -> Plugging | None:
        """None of the host's own devices can be plugged in."""
        return None

    @property
    def guest_agent(self) -> GuestAgent | None:
        """Nothing can be run in the guest."""
        return None

    @property
    def publishing(self) -> Publishing | None:
        """What has landed is let run, or removed."""
        return None

    @property
    def agentless(self) -> Agentless | None:
        """Entourage is on the host that it builds on."""
        return None

    async def data_ports(
        self,
        address: str,  # noqa: ARG002 - see base.Incoming
        ports: tuple[int, int],  # noqa: ARG002 - same
    ) -> tuple[int, int] | None:
        """Nothing comes by TCP ports of this host."""
        return None

    async def host_parts(self, plan: Plan) -> Sequence[HostPart]:  # noqa: ARG002 - see base.Incoming
        """It is built of nothing but the domain."""
        return ()

    async def parts_of_cookie(self, cookie: bytes) -> Sequence[HostPart]:  # noqa: ARG002 - same
        """Nothing in it is a name of anything."""
        return ()

    def check_with(self, check: PartsCheck) -> None:
        """Nothing of its configuration comes later than the plan."""

    @property
    def after_kill(self) -> str:
        """All that was made for it is in the ledger."""
        return ""

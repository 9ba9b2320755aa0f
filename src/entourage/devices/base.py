"""What a controller is: one device's way through the four steps, both halves in one class.

The same class is instantiated at both ends. The methods ``test`` … ``let_go`` run on the source;
each may ask the other half with ``here.peer(request, Reply)``, which runs ``test_there`` … on the
target, in the agent, with the request it was given, and returns what that returns.

A failure is an exception (DeviceError, or what the hypervisor raised). A controller never catches
CancelledError for longer than it takes to let go of what it holds: cancelled means that another
device has failed or the user wants out, and ``recover`` comes next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import msgspec

from entourage.domain import Device, Domain
from entourage.errors import UsageError
from entourage.events import AnyEvent
from entourage.hosts.allowed import Allowed
from entourage.hosts.filters import Filter
from entourage.hosts.resources import Ledger
from entourage.hypervisors.base import Incoming, Machine
from entourage.hypervisors.values import Since
from entourage.settings.model import Settings
from entourage.steps import Planned, Refusal, Step

Reply = TypeVar("Reply")
Spec = TypeVar("Spec", bound=Device)
"""What a device is, in a domain: ``Block``, say."""


class Peer(Protocol):
    """The other half of the same device, in the same step."""

    async def __call__(self, request: Any, reply: type[Reply]) -> Reply:
        """Run the target half with ``request`` and return what it returned, as ``reply``."""
        ...


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for on the command line, as far as devices are concerned."""

    nets: dict[str, str] = {}
    """Bridge here → bridge there (``--net br0=br1``)."""
    disks: dict[str, str] = {}
    """Disk id → path there (``--disk disk0=/dev/vg1/web1``)."""
    usb: dict[str, str] = {}
    """A USB device of the host's → the one that stands for it there (``--usb usb0=1050:0407``)."""
    pci: dict[str, str] = {}
    """The same of a PCI device (``--pci pci0=0000:41:00.0``)."""
    keep_source_disks: bool = False
    copies: frozenset[str] = frozenset()
    """The ids of disks that are copied into a save, or out of one."""
    filters: tuple[Filter, ...] = ()
    """Of a save, and of its restore: what memory goes through into it."""
    checkpoint: bool = False
    """Of a save: the guest goes on here, once it is saved."""
    stays_paused: bool = False
    """Of a checkpoint: the guest does not run on, until its user lets it."""
    revert: bool = False
    """Of a restore: the guest goes back to a checkpoint, whatever it did since."""
    sealed: bool = False
    """Of a save: the other disks must be what they are when it is restored."""
    mark: str = ""
    """Of a checkpoint: what the record is called of what is written to copied disks after it."""
    since: Since | None = None
    """Of a save: the checkpoint since which only changes are copied."""


def check_options(domain: Domain, options: Options) -> None:
    """What the user maps must be there.

    Raises:
        UsageError: The domain does not have it, or two of it, or it is mapped twice.
    """
    bridges = sorted({net.network or net.bridge for net in domain.net})
    disks = sorted(block.id for block in domain.block)
    for flag, wanted, there in (("--net", options.nets, bridges), ("--disk", options.disks, disks)):
        for name in wanted:
            if name not in there:
                raise _lacks(domain, flag, name, there)
    for flag, wanted, devices in (
        ("--usb", options.usb, domain.usb),
        ("--pci", options.pci, domain.pci),
    ):
        taken: set[str] = set()
        for name in wanted:
            meant = [device for device in devices if name in device.host_names]
            if not meant:
                raise _lacks(domain, flag, name, [" or ".join(d.host_names) for d in devices])
            if len(meant) > 1 or meant[0].id in taken:
                said = "has more than one" if len(meant) > 1 else "cannot have it mapped twice"
                remedy = f"name it by its id: {' or '.join(device.id for device in meant)}"
                raise UsageError(f"{flag} {name}=…: {domain.name} {said}", remedy=remedy)
            taken.add(meant[0].id)


def _lacks(domain: Domain, flag: str, name: str, has: Sequence[str]) -> UsageError:
    return UsageError(
        f"{flag} {name}=…: {domain.name} has no {name!r}",
        remedy=f"it has: {', '.join(filter(None, has)) or 'none'}",
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Here:
    """What the source half of a controller works with.

    Attributes:
        migration: The migration's id.
        source, target: The names of both hosts, as the user calls them.
        machine: The running domain, and what it can be asked to do.
        settings: This host's settings.
        options: What the user asked for.
        peer: The other half, in the step under way.
        emit: Sends an event; ``now()`` is its ``at``.
        blockers: What ``machine.blockers()`` said, asked once for all devices. A controller
            returns those that bear its device's label; the engine those that bear no device's.
        settled: In TRANSFER, called by a controller that ``settles``: the last memory may follow,
            though ``transfer`` has more to do. Returning from it says the same.
    """

    migration: str
    source: str
    target: str
    machine: Machine
    settings: Settings
    options: Options
    peer: Peer
    emit: Callable[[AnyEvent], None]
    now: Callable[[], float]
    blockers: Sequence[Refusal] = ()
    settled: Callable[[], None] = lambda: None


@dataclasses.dataclass(slots=True)
class There:
    """What the target half of a controller works with.

    Attributes:
        migration: The migration's id.
        host: The target's name.
        domain: The domain as it is to be built here; a half that chooses something (a tap's name)
            puts it in with ``domain = domain.with_device(…)``.
        incoming: The machine being built.
        ledger: Where every resource is written down before it is made.
        settings: This host's settings.
        run_dir: A directory of this domain's own, on tmpfs.
        state_dir: A directory of this domain's own that survives a power cut.
        allowed: What the source may name here. The agent has one for all that a link asks.
        space: What the domain's disks will take: bytes by device label, by filesystem (st_dev).
            TEST adds to it, so that disks on one filesystem are counted together.
        source: The source's name, as that calls itself; a restore's is the save's directory.
    """

    migration: str
    host: str
    domain: Domain
    incoming: Incoming
    ledger: Ledger
    settings: Settings
    run_dir: str
    state_dir: str
    allowed: Allowed
    space: dict[int, dict[str, int]] = dataclasses.field(default_factory=dict[int, dict[str, int]])
    source: str = ""


class Controller(Generic[Spec]):
    """One device's way through the steps. Everything not overridden does nothing and succeeds.

    It is generic in what its device is: ``BlockController`` is a ``Controller[Block]``.

    Attributes:
        device: The device on the source.
        target_device: The device as the target is to have it; ``test`` may replace it.
        left_out: Whether the target is to have none of it at all; ``test`` may say so.
    """

    device_class: ClassVar[str]
    spec: ClassVar[type[Device]]
    """What its device is, where its class is one of ``domain.ADDED``."""
    settles: ClassVar[bool] = False
    """True where the last memory pages must wait for TRANSFER (a disk's last writes)."""
    recovers_first: ClassVar[bool] = False
    """True where ``recover`` must have returned (or timed out) before the guest may run again."""
    undoes_prepare: ClassVar[bool] = False
    """True where ``recover`` must also come after a crash within PREPARE; where there is a memo."""

    def __init__(self, device: Spec) -> None:
        self.device = device
        self.target_device = device
        self.left_out = False

    def memo(self) -> dict[str, Any]:
        """What ``let_go`` and ``recover`` must know after a crash, as JSON.

        Written down once PREPARE is done; where ``undoes_prepare``, before it begins as well.
        """
        return {}

    def recall(self, memo: dict[str, Any]) -> None:
        """Take up what ``memo`` of an earlier process said."""

    # Source half

    async def test(self, here: Here) -> Sequence[Refusal]:
        """Step 0: every reason why this device cannot move. Touches nothing."""
        return ()

    async def test_provided(self, here: Here) -> Sequence[Refusal]:
        """Step 0, where an external tool moves the device alone: what the target has against it.

        What the tool brings there must be something that the target's machine may be built with.
        """
        return ()

    def planned(self, here: Here) -> Planned:
        """After ``test``: what will be done with it. Its state is in the stream, if it has any."""
        return Planned(action="with-memory")

    async def prepare(self, here: Here) -> None:
        """Step 1: what can be done while the guest runs; the target makes its resources.

        The target's machine is built once this has returned for every device: what the machine
        does not need in order to be built belongs into ``connect``.
        """

    async def connect(self, here: Here) -> None:
        """The rest of step 1, once the target's machine stands, paused: mirrors begin here."""

    async def transfer(self, here: Here) -> None:
        """Step 2: the guest has stopped; runs beside the last memory copy."""

    async def sync(self, here: Here) -> None:
        """Step 3: returns when this device is all there."""

    async def recover(self, here: Here, last_good: Step) -> None:
        """Undo, on the source, what was done; ``last_good`` is the last step that went well."""

    async def let_go(self, here: Here) -> None:
        """The domain runs on the target and the machine here has ended: free what it held."""

    def progress(self, here: Here) -> tuple[int, int]:
        """Bytes done and in total in PREPARE; (0, 0) where there is nothing to show."""
        return (0, 0)

    # Target half

    def device_there(self, there: There) -> Spec:
        """The device as the target's domain has it, with what the target has chosen for it."""
        device = there.domain.device(self.device.label)
        if not isinstance(device, type(self.device)):
            raise TypeError(f"{device.label} is a {type(device).__name__}")
        return device

    async def test_there(self, there: There, request: Any) -> Any:
        """Step 0 on the target."""
        raise NotImplementedError

    async def prepare_there(self, there: There, request: Any) -> Any:
        """Step 1 on the target: make what the machine needs to be built."""
        raise NotImplementedError

    async def connect_there(self, there: There, request: Any) -> Any:
        """The rest of step 1 on the target: its machine stands, paused."""
        raise NotImplementedError

    async def transfer_there(self, there: There, request: Any) -> Any:
        """Step 2 on the target."""
        raise NotImplementedError

    async def sync_there(self, there: There, request: Any) -> Any:
        """Step 3 on the target."""
        raise NotImplementedError

    async def recover_there(self, there: There, request: Any) -> Any:
        """Asked by ``recover``; what is in the ledger is undone anyway."""
        raise NotImplementedError

    async def persist(self, there: There) -> None:
        """Put on the disk what was not synced: once memory has landed, and once the guest ran.

        Called on the target without being asked. From GO on the source may erase its own.
        """

    async def arrived(self, there: There) -> None:
        """The guest runs here now. Called on the target without being asked.

        Until every device has done this, neither host's journal says that it does.
        """

    async def finish_arrival(self, there: There) -> None:
        """Both hosts may know that the guest runs here: finish what ``arrived`` has only begun."""


AnyController: TypeAlias = Controller[Any]
"""The controller of a device of whichever class."""

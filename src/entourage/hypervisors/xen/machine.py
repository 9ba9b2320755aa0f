"""A Xen domain that runs here, and its carrier: the source's half of a migration.

The six operations go by ``xl migrate``.

    start    disks are copied; xl begins, with our transport in the place of ssh
    stopped  xenstore's @releaseDomain, and the domain is suspended
    landed   what has changed on copied disks is on the target, and proven
    disarm   xl hears READY, renames its copy and says GO: it never resumes it by itself now
    release  xl hears that the domain runs there, and destroys its copy
    abort    xl sees a migration that has failed, and lets the domain run here
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

import msgspec

from entourage.domain import Domain, Net
from entourage.errors import GoneError, HypervisorError
from entourage.handover.values import Guest
from entourage.hosts.ssh import ssh_command
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DataPlane, DiskCarrying, MemoryProgress, Plan, Ticket
from entourage.hypervisors.seams import HostDevice, MachineSeams, Objection
from entourage.hypervisors.xen import hostdevices, looks
from entourage.hypervisors.xen.announce import announce
from entourage.hypervisors.xen.disks import Disks
from entourage.hypervisors.xen.handle import Handle
from entourage.hypervisors.xen.header import Changes
from entourage.hypervisors.xen.hostdevices import HostDevices
from entourage.hypervisors.xen.migrating import Migrating
from entourage.hypervisors.xen.plan import Parameters, XenPlan
from entourage.hypervisors.xen.xenstore import RELEASED
from entourage.hypervisors.xen.xl import xl
from entourage.settings.model import Settings
from entourage.steps import Planned, Refusal

_UNWATCHED = (
    "xl of this host's Xen watches {name} no more, since it stood still and goes on (mended in Xen"
    " 4.20): when its guest reboots or crashes, nobody does what on_reboot and on_crash say. xl"
    " watches it again once it has moved, or was started anew (`xl create`)"
)
_NOTHING: Mapping[str, str] = MappingProxyType({})


class XenMachine(MachineSeams):
    """A domain of this dom0.

    Args:
        handle: The domain, as xl and xenstore have it.
        settings: This host's.
    """

    non_live = False
    was_running = True
    """TEST refuses a domain that its user has paused."""
    in_the_clear = ""
    """ssh carries everything."""

    def __init__(self, handle: Handle, settings: Settings) -> None:
        self._handle = handle
        self._settings = settings
        self._disks = Disks(handle.config)
        self._migrating = Migrating(handle, leaves_from(settings, str(handle.domain.uuid)))
        self._unplugging = XenUnplugging(handle)
        self._plane: DataPlane | None = None
        self._lock: int | None = None
        self._budget: float | None = None
        self._target: Domain | None = None
        self._restarted: bool | None = None
        self._has_stood = self._forgets_suspended = False
        self._after_abort = ""

    @property
    def domain(self) -> Domain:
        """The running configuration."""
        return self._handle.domain

    @property
    def saving(self) -> XenMachine | None:
        """Xl's own save ends the domain before the rest of a save is whole."""
        from entourage.hypervisors.xen.saving import XenSaving  # noqa: PLC0415 - it is one

        return XenSaving(self._handle, self._settings)

    @property
    def carrying(self) -> DiskCarrying:
        """Raw disks are copied beside the memory."""
        return self._disks

    @property
    def announcing(self) -> XenAnnouncing:
        """Entourage announces NICs by itself."""
        return XenAnnouncing()

    @property
    def unplugging(self) -> XenUnplugging:
        """Xl detaches devices of the host."""
        return self._unplugging

    @property
    def after_abort(self) -> str:
        """Before Xen 4.20 nothing watches a domain any more that was suspended and goes on."""
        return self._after_abort

    def stay_paused(self) -> None:
        """``abort`` leaves its guest paused."""
        self.was_running = False

    async def reattach(self, *, was_running: bool) -> Guest:
        """Take up a migration that another process began; what became of the guest here."""
        self.was_running = was_running
        now = self._handle.life()
        if now is None or now.ended:
            return Guest.DEAD
        self._has_stood = now.suspended
        return Guest.STOPPED if now.suspended or now.paused else Guest.RUNNING

    async def close(self) -> None:
        """Let go of the machine without changing it."""
        await self._disks.end()
        await self._migrating.close()
        await self._handle.store.close()

    @property
    def definition(self) -> Planned:
        """There is none of xl's: the user has it."""
        return Planned(action="left-here", here="the configuration file that xl was given")

    def encrypts(
        self,
        offers: Mapping[str, str] | None,  # noqa: ARG002 - it makes no difference
        *,
        wanted: bool,  # noqa: ARG002 - same
    ) -> bool:
        """Always."""
        return True

    async def facts(self) -> Mapping[str, str]:
        """Xen's version, the kind of machine, and digests of what it boots from."""
        return await looks.facts(self._handle)

    async def blockers(self) -> Sequence[Refusal]:
        """What xl would fail at half-way, or do though it should not."""
        return await looks.blockers(self._handle)

    async def died(self) -> str:
        """Returns, with the reason, when the guest has ended; never before."""
        handle = self._handle
        await handle.until_ended()
        if handle.last is not None and handle.last.shut_down:
            return "its guest has shut it down (guest-shutdown)"
        if self._restarted is None:
            self._restarted = await handle.is_back()
        if self._restarted:
            return "xl has made it anew (guest-reboot)"
        if handle.last is not None and handle.last.reboots:
            return "its guest rebooted, and xl has not made it anew so far"
        return "xl knows it no more"

    # The carrier's six operations

    async def arm(
        self,
        plane: DataPlane,
        *,
        downtime_limit: float | None = None,  # noqa: ARG002 - see ``tune``
        throttle: bool = False,  # noqa: ARG002 - xl has no way to slow a guest
        lock: int | None = None,
        budget: float | None = None,
        offers: Mapping[str, str] = _NOTHING,  # noqa: ARG002 - nothing to choose from
    ) -> None:
        """Watch for the moment of stop; the deadman comes with ``start``."""
        self._plane, self._lock, self._budget = plane, lock, budget
        self._forgets_suspended = await looks.forgets_suspended()
        await self._handle.store.watch(RELEASED)

    async def plan(self, target: Domain) -> Plan:
        """Which disks will be copied; what is otherwise there is changed in the stream."""
        self._target = target
        plan = XenPlan(parameters=Parameters(disks=list(self._disks.names)))
        return Plan(msgspec.msgpack.encode(plan))

    async def start(self, ticket: Ticket, *, live: bool) -> None:  # noqa: ARG002 - see ``non_live``
        """Copy the disks, then have xl begin; returns when its stream flows.

        Raises:
            HypervisorError: A disk cannot be copied, or xl refuses.
        """
        target = self._target or self.domain
        host = self._plane.host if self._plane else ""

        def ssh(what: str) -> list[str]:
            """The command at whose end the agent takes a stream."""
            return ssh_command(host, self._settings, ["agent", "--join", ticket.uri, what])

        await self._disks.copy_first(self.domain, target, ssh, ticket.cookie)
        differs = asdict(changes(self.domain, target))
        secret = ticket.cookie.hex()
        order = {
            "ssh": ssh("memory"),
            "secret": secret,
            "changes": differs,
            "budget": self._budget,
        }
        await self._migrating.begin(order, self._lock)

    async def progress(self) -> MemoryProgress:
        """What has gone through; how much is left xl tells nobody."""
        passed = self._migrating.passed
        total = max(passed, self.domain.memory)
        return MemoryProgress(
            remaining=total - passed,
            total=total,
            dirty_rate=0.0,
            rate=0.0,
            iteration=0,
            sent=passed,
        )

    async def tune(self, *, downtime_limit: float, throttle: bool) -> None:
        """Nothing: xl goes by its own rules (five rounds, or less than 50 pages left)."""

    async def stopped(self) -> int:
        """Wait until the guest is suspended; ns of the monotonic clock."""
        moment: int = await self._migrating.beside(self._until_suspended())
        self._has_stood = True
        self._migrating.stopped()
        self._disks.begin_last()
        return moment

    async def _until_suspended(self) -> int:
        released = await self._handle.store.watch(RELEASED)
        while True:
            released.clear()
            now = self._handle.life()
            if now is None or now.ended:
                raise GoneError(f"{self.domain.name} has ended")
            if now.suspended:
                return time.monotonic_ns()
            await released.wait()

    async def pre_switchover(self) -> str:
        """Nothing: back ends hold no writes of a guest that is suspended."""
        return ""

    async def continue_switchover(self) -> None:
        """Nothing: xl sends the rest by itself, beside the disks."""

    async def landed(self) -> bytes:
        """Wait until all of the copied disks is there; that memory is, the target says."""
        await self._migrating.beside(self._disks.last())
        return b""

    async def disarm_deadman(self) -> None:
        """GO may be sent next: from when this returns, nothing resumes the guest by itself."""
        await self._migrating.hold()

    # The end

    async def abort(self) -> None:
        """Give the migration up at whatever point: the guest runs here again.

        xl itself lets it run, once its transport has ended as the other end of a migration that
        failed; where xl is gone, libxl does.

        Raises:
            GoneError: Its guest has ended.
            HypervisorError: The domain does not go on.
        """
        now = self._handle.life()
        # Before xl lets it run, which it then does not; once, since Xen counts.
        if not self.was_running and now is not None and not now.paused:
            await xl("pause", str(self._handle.domid))
        self._migrating.fail()
        await self._disks.end()
        await self._migrating.ended()
        try:
            await self._handle.run_again()
        except GoneError:
            await self._migrating.tidy()
            raise
        await self._migrating.tidy()
        if self._has_stood and self._forgets_suspended:
            self._after_abort = _UNWATCHED.format(name=self.domain.name)

    async def halt(self) -> None:
        """Stop the guest and keep it: it was found running without a right to."""
        if self._handle.domid is not None:
            await xl("pause", str(self._handle.domid))

    async def release(self) -> None:
        """The domain runs on the target: xl destroys its copy; where xl is gone, it is told to."""
        await self._migrating.release()
        await self._handle.destroy()
        await self._disks.end()
        await self._migrating.tidy()


class XenUnplugging:
    """Takes the host's own devices out of a running guest.

    Args:
        handle: The domain.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._devices: HostDevices | None = None

    async def test_unplug(self, device: HostDevice) -> Sequence[Objection]:
        """Why this device cannot be taken out of the running guest, or would not come back."""
        return hostdevices.test_unplug(device, self._handle.config)

    async def unplug(self, device: HostDevice) -> None:
        """Take one of the host's own out; one that is out already is no error."""
        await self._attached().unplug(device)

    async def plug(self, device: HostDevice) -> None:
        """Give it back; one that is there already, or a guest that is not, is no error."""
        now = self._handle.life()
        if now is not None and not now.ended:
            await self._attached().plug(device)

    def _attached(self) -> HostDevices:
        domid, name = self._handle.domid, self._handle.domain.name
        if self._devices is None:
            if domid is None:
                raise HypervisorError(f"the machine of {name} is gone")
            self._devices = HostDevices(domid, name)
        return self._devices


class XenAnnouncing:
    """Announces NICs from this host, whichever it is."""

    async def announce(self, nets: Sequence[Net]) -> None:
        """Tell the network where the guest's MACs are."""
        await in_thread(announce, nets)


def leaves_from(settings: Settings, uuid: str) -> Path:
    """The directory of what only the leaving of a domain needs."""
    return Path(settings.paths.run, f"xen-{uuid}")


def changes(here: Domain, there: Domain) -> Changes:
    """What xl on the target must be told otherwise.

    Args:
        here: The domain as it runs.
        there: The same, device by device, as it is to be.
    """
    disks = zip(here.block, there.block, strict=True)
    nics = zip(here.net, there.net, strict=True)
    return Changes(
        paths={one.id: other.path for one, other in disks if one.path != other.path},
        nets={one.bridge: it.bridge for one, it in nics if one.bridge != it.bridge},
        passthrough=any(pci.plug for pci in there.pci),
    )

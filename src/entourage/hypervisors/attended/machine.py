"""A domain whose migration somebody else drives: the source's half, which waits for it.

arm      QEMU's object is added
start    from here on QEMU may stop the guest; the migration's driver is told to go on
stopped  QEMU's Save
abort    Save is refused, or the driver's job ended: the driver resumes the guest, not we
release  the driver ends its copy, not we
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec

from entourage.domain import Domain
from entourage.errors import GoneError, HypervisorError
from entourage.handover.values import Guest
from entourage.hypervisors.attended.looks import Looks
from entourage.hypervisors.attended.switchover import SourceSwitchover
from entourage.hypervisors.attended.toolstack import ENDED, Shown, Toolstack, Watch
from entourage.hypervisors.base import DataPlane, MemoryProgress, Plan, Ticket
from entourage.hypervisors.seams import GuestAgent, MachineSeams
from entourage.steps import Refusal

_NO_PLAN = Plan(msgspec.msgpack.encode({}))
_NOTHING: Mapping[str, str] = MappingProxyType({})
_LOOK_EVERY = 0.25  # seconds, while the guest runs; each look takes a thread
_BEGINS_WITHIN = 120.0  # seconds from our answer to the driver's own beginning
_FAILS_WITHIN = 3.0  # seconds: QEMU tells its driver of what it was refused in much less
_RUNS_WITHIN = 40.0  # seconds: longer than QEMU waits for us
_ENDS_WITHIN = 60.0
_GUESTS: Mapping[Shown, Guest] = MappingProxyType(
    {
        Shown.RUNNING: Guest.RUNNING,
        Shown.PAUSED: Guest.RUNNING,
        Shown.HELD: Guest.STOPPED,
        **dict.fromkeys(ENDED, Guest.DEAD),
    }
)


class AttendedMachine(MachineSeams):
    """A domain that its toolstack migrates.

    Args:
        toolstack: This host's.
        domain: With only those devices that are ours.
        was_running: False where its user had paused the guest.
        switchover: Where QEMU's Save arrives; None of one that is only looked at.
        socket: Of the domain's bus.
        watch: What is heard of it; closed with this.
    """

    non_live = False

    def __init__(
        self,
        toolstack: Toolstack,
        domain: Domain,
        *,
        was_running: bool = True,
        switchover: SourceSwitchover | None = None,
        socket: str = "",
        watch: Watch | None = None,
    ) -> None:
        self.domain = domain
        self.was_running = was_running
        self._toolstack = toolstack
        self._switchover = switchover
        self._socket = socket
        self._watch = watch

    @property
    def _uuid(self) -> str:
        return self.domain.uuid or ""

    @property
    def guest_agent(self) -> GuestAgent:
        """The toolstack has a way to it."""
        return self._toolstack.guest_agent(self.domain)

    async def reattach(self, *, was_running: bool) -> Guest:
        """What the toolstack shows of it."""
        self.was_running = was_running
        return _GUESTS[await self._toolstack.shown(self._uuid)]

    async def close(self) -> None:
        """Hear no more of it."""
        if self._watch is not None:
            await self._watch.close()

    async def facts(self) -> Mapping[str, str]:
        """Nothing: the toolstack's own halves have compared what they need."""
        return {}

    async def blockers(self) -> Sequence[Refusal]:
        """Nothing: the toolstack has refused what it cannot move."""
        return ()

    async def died(self) -> str:
        """Returns, with the reason, when the machine is gone; never before."""
        if self._watch is None:
            if await self._toolstack.shown(self._uuid) in ENDED:
                return "its machine has ended"
            return await asyncio.get_running_loop().create_future()
        return await self._watch.ended()

    async def arm(
        self,
        plane: DataPlane,  # noqa: ARG002 - nothing of ours travels
        *,
        downtime_limit: float | None = None,  # noqa: ARG002 - the driver's
        throttle: bool = False,  # noqa: ARG002 - same
        lock: int | None = None,  # noqa: ARG002 - the driver resumes the guest
        budget: float | None = None,  # noqa: ARG002 - QEMU gives up by itself
        offers: Mapping[str, str] = _NOTHING,  # noqa: ARG002
    ) -> None:
        """Give QEMU its object."""
        await self._toolstack.add_object(self._uuid, self._socket)

    def encrypts(
        self,
        offers: Mapping[str, str] | None,  # noqa: ARG002 - see base.Machine
        *,
        wanted: bool,  # noqa: ARG002
    ) -> bool | None:
        """The driver's business."""
        return None

    @property
    def in_the_clear(self) -> str:
        """Nothing of ours travels."""
        return ""

    async def plan(self, target: Domain) -> Plan:  # noqa: ARG002 - the driver builds it
        """Nothing."""
        return _NO_PLAN

    async def start(self, ticket: Ticket, *, live: bool) -> None:  # noqa: ARG002 - same
        """Every device is prepared: QEMU may stop the guest."""
        self._switch.ready()

    async def progress(self) -> MemoryProgress:
        """How far the driver is."""
        return await self._toolstack.progress(self._uuid)

    async def tune(self, *, downtime_limit: float, throttle: bool) -> None:
        """The driver's business."""

    async def stopped(self) -> int:
        """Wait until the guest has stopped for its switchover; that moment.

        QEMU's Save may come much later: libvirt completes its disks in between.

        Raises:
            HypervisorError: The driver has given up.
        """
        moment = await self._unless_given_up(self._switches(), self._job_gone())
        self._switch.stands_still = True
        return moment

    async def _switches(self) -> int:
        saved = asyncio.create_task(self._switch.saved())
        heard = asyncio.create_task(self._heard())
        try:
            await asyncio.wait({saved, heard}, return_when=asyncio.FIRST_COMPLETED)
            moment = heard.result() if heard.done() else 0
            return moment or (saved.result() if saved.done() else time.monotonic_ns())
        finally:
            await _ended(saved, heard)

    async def _heard(self) -> int:
        """The moment of the stop, as the driver tells it; it gives up where its daemon has gone."""
        if self._watch is None:
            return await asyncio.get_running_loop().create_future()
        return await self._watch.switches()

    async def _unless_given_up(
        self, wanted: Coroutine[Any, Any, int], *others: Coroutine[Any, Any, NoReturn]
    ) -> int:
        """Wait for what is wanted, and raise what one of the others raises before that."""
        tasks = [asyncio.create_task(each) for each in (wanted, self._given_up(), *others)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:  # what is wanted comes first
                if task.done():
                    return task.result()
        finally:
            await _ended(*tasks)
        raise AssertionError

    async def _given_up(self) -> NoReturn:
        if self._watch is None:
            await asyncio.get_running_loop().create_future()
            raise AssertionError
        word = await self._watch.given_up()
        raise HypervisorError(f"the migration was given up: QEMU says {word}")

    async def _job_gone(self) -> NoReturn:
        """Look whether the driver still migrates it: of what fails before QEMU nobody is told."""
        began, seen, missing = time.monotonic(), False, 0
        while True:
            try:
                under_way = await self._toolstack.migrates(self._uuid)
            except HypervisorError:  # its daemon is restarted, perhaps
                under_way = False
            missing = 0 if under_way else missing + 1
            seen = seen or under_way
            if seen and missing > 1:
                raise HypervisorError("the migration was given up by who began it")
            if not seen and time.monotonic() - began > _BEGINS_WITHIN:
                raise HypervisorError(
                    f"the migration was not begun within {_BEGINS_WITHIN:g} s after it was allowed"
                )
            await asyncio.sleep(_LOOK_EVERY)

    async def pre_switchover(self) -> str:
        """The driver's disks are its own."""
        return ""

    async def continue_switchover(self) -> None:
        """Let QEMU send the rest."""
        self._switch.go_on()

    async def landed(self) -> bytes:
        """Wait for QEMU's Save, after which it says nothing more here: the target's Load does.

        Raises:
            HypervisorError: The driver has given up.
        """
        await self._unless_given_up(self._switch.saved())
        return b""

    async def disarm_deadman(self) -> None:
        """There is none: the driver resumes the guest."""

    async def halt(self) -> None:
        """Which copy runs is the driver's to decide: this only tells of it.

        Raises:
            HypervisorError: Always.
        """
        told = await self._toolstack.commands(self.domain)
        raise HypervisorError(
            f"{self.domain.name} runs here, and the journal says that it went away",
            remedy=f"see on both hosts where it runs (`{told.see}`), and end the other copy"
            f" (`{told.end}`)",
        )

    async def release(self) -> None:
        """Wait until the driver has ended its copy."""
        looks = Looks(self._toolstack, self._uuid, self._watch)
        if await looks.until(lambda shown: shown in ENDED, _ENDS_WITHIN) in ENDED:
            return
        told = await self._toolstack.commands(self.domain)
        raise HypervisorError(
            f"{self.domain.name} runs on the target, and its copy here has not been ended",
            remedy=f"see where it runs (`{told.see}`), then `{told.end}` here",
        )

    async def abort(self) -> None:
        """Have the driver give up, and wait until it has let the guest run again.

        Raises:
            GoneError: The guest has ended.
            HypervisorError: It stands still.
        """
        if self._switchover is not None:
            self._switchover.refuse("its devices could not be moved: see `entourage status`")
            if not self._switchover.saved_at:
                await self._give_up()
        looks = Looks(self._toolstack, self._uuid, self._watch)
        shown = await looks.until(lambda shown: shown is not Shown.HELD, _FAILS_WITHIN)
        if shown is Shown.HELD:  # QEMU waits for a target that is off, perhaps, for minutes
            giving_up = asyncio.create_task(self._give_up())
            try:
                shown = await looks.until(lambda shown: shown is not Shown.HELD, _RUNS_WITHIN)
            finally:
                giving_up.cancel()
                await asyncio.gather(giving_up, return_exceptions=True)
        if shown in ENDED:
            raise GoneError(f"the machine of {self.domain.name} is gone")
        if shown is Shown.HELD:
            told = await self._toolstack.commands(self.domain)
            raise HypervisorError(
                f"{self.domain.name} stands still, held by its migration",
                remedy=f"see where it runs (`{told.see}`); only if that is nowhere,"
                f" `{told.resume}` here",
            )

    async def _give_up(self) -> None:
        with contextlib.suppress(HypervisorError):
            await self._toolstack.give_up(self._uuid)

    @property
    def _switch(self) -> SourceSwitchover:
        if self._switchover is None:
            raise HypervisorError("nobody migrates it")
        return self._switchover


async def _ended(*tasks: asyncio.Task[int]) -> None:
    """End tasks that nobody waits for any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

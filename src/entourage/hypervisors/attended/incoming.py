"""A domain that somebody else's migration brings here: the target's half, which waits for it.

listen  the hook may answer: the driver builds its machine
landed  QEMU's Load
run     Load is answered; the driver lets the guest run, not we
kill    Load is refused; the driver ends its machine, not we
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping

from entourage.domain import Domain
from entourage.errors import HypervisorError, InDoubt
from entourage.handover.values import Guest
from entourage.hypervisors.attended.switchover import TargetSwitchover
from entourage.hypervisors.attended.toolstack import Shown, Toolstack, Watch
from entourage.hypervisors.base import DataPlane, Plan, Ticket
from entourage.hypervisors.seams import IncomingSeams

_RUNS_WITHIN = 60.0  # seconds from our yes to the guest; a libvirtd may be restarted meanwhile
_GOES_WITHIN = 10.0
_LOOK_AGAIN = 0.02
_LOOK_FIRST = 0.2  # not in a usual blackout, whose end is heard of
_RELEASED = frozenset({Shown.RUNNING, Shown.PAUSED})


class AttendedIncoming(IncomingSeams):
    """A domain that its toolstack takes.

    Args:
        toolstack: This host's.
        domain: With only those devices that are ours.
        switchover: Where QEMU's Load arrives; None of one that is only looked at.
        watch: What is heard of it.
    """

    def __init__(
        self,
        toolstack: Toolstack,
        domain: Domain,
        switchover: TargetSwitchover | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._toolstack = toolstack
        self._domain = domain
        self._switchover = switchover
        self._watch = watch

    @property
    def _uuid(self) -> str:
        return self._domain.uuid or ""

    async def attach(self) -> Guest:
        """What the toolstack shows; a machine that is not there, nor its definition, never ran."""
        shown = await self._toolstack.shown(self._uuid)
        if shown in _RELEASED:
            return Guest.RUNNING
        return Guest.DEAD if shown is Shown.OFF else Guest.STOPPED

    async def offers(self) -> Mapping[str, str]:
        """Nothing that the source must know."""
        return {}

    async def networks(self) -> Mapping[str, str]:
        """The toolstack's own business."""
        return {}

    async def build(self, domain: Domain, plane: DataPlane, plan: Plan) -> None:  # noqa: ARG002 - see base
        """The driver builds it, when the hook has answered."""
        self._domain = domain

    async def listen(self) -> Ticket:
        """Every device is prepared: let the hook answer."""
        self._switch.listening.set()
        return Ticket(uri="attended")

    async def landed(self) -> None:
        """Wait for QEMU's Load: all of memory is here."""
        await self._switch.loaded()

    def accept_cookie(self, cookie: bytes) -> None:
        """There is none."""

    async def died(self) -> str:
        """Returns, with the reason, when the machine is gone; never before."""
        return await self._switch.ended()

    async def run(self, *, paused: bool) -> int:  # noqa: ARG002 - the driver knows
        """Answer Load, and wait for the driver to let the guest run.

        Raises:
            HypervisorError: It has given up, and the guest never ran.
            InDoubt: Nobody says what became of it.
        """
        if self._switchover is None or self._watch is None:
            return await self._looked()
        resumed = asyncio.create_task(self._watch.resumed())
        looked = asyncio.create_task(self._looked(resumed))
        self._switchover.let_run()
        try:
            await asyncio.wait({resumed, looked}, return_when=asyncio.FIRST_COMPLETED)
            if resumed.done() and not resumed.exception():
                return resumed.result()
            return await looked
        finally:
            for task in (resumed, looked):
                task.cancel()
            await asyncio.gather(resumed, looked, return_exceptions=True)

    async def _looked(self, resumed: asyncio.Task[int] | None = None) -> int:
        """Ask until the guest runs, or never will; now, in ns of the monotonic clock.

        Args:
            resumed: Ends when the guest is heard to run, and fails where nothing is heard any more:
                as long as something would be, what is off has not run.
        """
        if resumed is not None:
            await asyncio.sleep(_LOOK_FIRST)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RUNS_WITHIN):
                while True:
                    shown = await self._seen()
                    if shown in _RELEASED:
                        return time.monotonic_ns()
                    unheard = resumed is not None and not resumed.done()
                    if shown is Shown.ABSENT or (shown is Shown.OFF and unheard):
                        raise HypervisorError(
                            f"whoever migrated {self._domain.name} has given up at its very end"
                        )
                    if shown is Shown.OFF:  # it may have run: its definition came with that
                        return time.monotonic_ns()
                    await asyncio.sleep(_LOOK_AGAIN)
        raise InDoubt(
            f"whether {self._domain.name} runs is not known: its devices are here, and whoever"
            " migrated it neither lets it run nor gives up",
            remedy=f"see with the toolstack's own commands; then `entourage recover"
            f" {self._domain.name}`",
        )

    async def _seen(self) -> Shown:
        try:
            return await self._toolstack.shown(self._uuid)
        except HypervisorError:  # its daemon is restarted, perhaps
            return Shown.HELD

    async def halt(self) -> None:
        """Which copy runs is the driver's to decide: this only tells of it.

        Raises:
            HypervisorError: Always.
        """
        raise HypervisorError(
            f"{self._domain.name} runs here, and was given back",
            remedy="see with the toolstack's own commands where it runs, and end the other copy",
        )

    async def persist_definition(self) -> None:
        """The driver has written it down, or will not."""

    async def finish_arrival(self) -> None:
        """The daemon takes QEMU's object away, or keeps it for the next migration."""

    async def kill(self) -> None:
        """Refuse Load, and wait for a while until the driver has ended its machine."""
        if self._switchover is None:
            return
        self._switchover.refuse("its devices did not come: see `entourage status` on the source")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOES_WITHIN):
                while await self._seen() is Shown.HELD:  # noqa: ASYNC110 - it is asked
                    await asyncio.sleep(_LOOK_AGAIN)

    @property
    def _switch(self) -> TargetSwitchover:
        if self._switchover is None:
            raise HypervisorError("nobody migrates it")
        return self._switchover

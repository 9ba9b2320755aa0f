"""A domain that somebody else's migration brings here: the target's half, which waits for it.

listen  the hook may answer: the driver builds its machine
landed  QEMU's Load
run     Load is answered; the driver lets the guest run, not we
kill    Load is refused; the driver ends its machine, not we
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from entourage.domain import Domain
from entourage.errors import EntourageError, HypervisorError, InDoubt, plain_words
from entourage.handover.values import Guest
from entourage.hypervisors.attended.looks import Looks
from entourage.hypervisors.attended.switchover import TargetSwitchover
from entourage.hypervisors.attended.toolstack import ENDED, RELEASED, Shown, Toolstack, Watch
from entourage.hypervisors.base import DataPlane, Plan, Ticket
from entourage.hypervisors.seams import GuestAgent, IncomingSeams

_RUNS_WITHIN = 60.0  # seconds from our yes to the guest; a libvirtd may be restarted meanwhile
_GOES_WITHIN = 10.0
_NO_TRACE = "nothing of it is to be seen here, and"


class AttendedIncoming(IncomingSeams):
    """A domain that its toolstack takes.

    Args:
        toolstack: This host's.
        domain: With only those devices that are ours.
        switchover: Where QEMU's Load arrives; None of one that is only looked at.
        watch: What is heard of it.
        source: Asks what the source's toolstack shows of it.
    """

    def __init__(
        self,
        toolstack: Toolstack,
        domain: Domain,
        switchover: TargetSwitchover | None = None,
        watch: Watch | None = None,
        source: Callable[[], Awaitable[Shown]] | None = None,
    ) -> None:
        self._toolstack = toolstack
        self._source = source
        self._domain = domain
        self._switchover = switchover
        self._watch = watch

    @property
    def _uuid(self) -> str:
        return self._domain.uuid or ""

    @property
    def guest_agent(self) -> GuestAgent:
        """The toolstack has a way to it."""
        return self._toolstack.guest_agent(self._domain)

    async def attach(self) -> Guest:
        """What the toolstack shows; of one that it has not seen run, ``run`` finds out."""
        shown = await self._toolstack.shown(self._uuid)
        if shown in RELEASED:
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
        """Look until the guest runs, or never will; now, in ns of the monotonic clock.

        Args:
            resumed: Ends when the guest is heard to run, and fails where nothing is heard any more:
                as long as something would be, what is off has not run.
        """

        def decided(shown: Shown) -> bool:
            if shown is Shown.FAILED or (shown in ENDED and resumed and not resumed.done()):
                raise self._given_up()
            return shown in RELEASED or shown in ENDED

        looks = Looks(self._toolstack, self._uuid, self._watch)
        shown = await looks.until(decided, _RUNS_WITHIN, at_once=resumed is None)
        if shown is Shown.HELD:
            raise await self._doubt("whoever migrated it neither lets it run nor gives up")
        if shown in {Shown.IDLE, Shown.ABSENT}:
            await self._see_it_left()
        return time.monotonic_ns()  # of one that is off: it has run, and has ended since

    async def _see_it_left(self) -> None:
        """Nothing of it is to be seen here: it has run where its source's copy was ended.

        Raises:
            HypervisorError: It runs there: it never did here.
            InDoubt: It stands still there, or nobody says.
        """
        if self._source is None:
            raise self._given_up()
        try:
            there = await self._source()
        except (EntourageError, OSError) as error:
            raise await self._doubt(
                f"{_NO_TRACE} its source cannot be asked: {plain_words(error)}"
            ) from error
        if there in RELEASED:
            raise self._given_up()
        if there is Shown.HELD:
            told = await self._toolstack.commands(self._domain)
            raise await self._doubt(
                f"{_NO_TRACE} its source's copy stands still",
                f"where it runs nowhere, `{told.abort}` on its source",
            )

    def _given_up(self) -> HypervisorError:
        return HypervisorError(f"whoever migrated {self._domain.name} has given up at its very end")

    async def _doubt(self, why: str, then: str = "let it run on one of them") -> InDoubt:
        told = await self._toolstack.commands(self._domain)
        return InDoubt(
            f"whether {self._domain.name} runs is not known: its devices are here, and {why}",
            remedy=f"see on both hosts (`{told.see}`); {then}; then"
            f" `entourage recover {self._domain.name}`",
        )

    async def halt(self) -> None:
        """Which copy runs is the driver's to decide: this only tells of it.

        Raises:
            HypervisorError: Always.
        """
        told = await self._toolstack.commands(self._domain)
        raise HypervisorError(
            f"{self._domain.name} runs here, and was given back",
            remedy=f"see on both hosts where it runs (`{told.see}`), and end the other copy"
            f" (`{told.end}`)",
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
        looks = Looks(self._toolstack, self._uuid, self._watch)
        await looks.until(lambda shown: shown is not Shown.HELD, _GOES_WITHIN)

    @property
    def _switch(self) -> TargetSwitchover:
        if self._switchover is None:
            raise HypervisorError("nobody migrates it")
        return self._switchover

"""A domain of libvirt's, as its libvirtd has it; found again where libvirtd was restarted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

from entourage.domain import Domain
from entourage.errors import GoneError, HypervisorError
from entourage.hypervisors.frontends import wants_room
from entourage.hypervisors.libvirt.autostart import Autostart
from entourage.hypervisors.libvirt.connection import (
    Connection,
    LostError,
    RefusedError,
    ask,
    have_qemu,
    tell_qemu,
)
from entourage.hypervisors.libvirt.constants import (
    NO_DOMAIN,
    OFF,
    PAUSED_BY_IO_ERROR,
    SHUT_OFF,
    State,
)
from entourage.hypervisors.libvirt.process import check_ended
from entourage.hypervisors.libvirt.undefine import undefine

_THERE = frozenset({State.RUNNING, State.BLOCKED, State.PAUSED, State.SUSPENDED})
_SHUTS_DOWN_WITHIN = 10.0  # seconds
_SOON = 0.05  # seconds
_BACK_WITHIN = 30.0  # seconds for a libvirtd that went away to come back


class Handle:
    """What its libvirtd is asked about one domain.

    Args:
        connection: To this host's libvirtd.
        raw: ``libvirt.virDomain``; None where there is none any more.
        domain: What its XML says.
        was_running: Whether its user lets the guest run.
        transient: Whether it has no definition.
        autostart: Whether that starts with its host.

    Attributes:
        connection, raw, domain, was_running, transient, autostart: As above, as they are now.
        gone: Why there is no machine any more, as was seen where it was to run; empty before.
    """

    def __init__(
        self,
        connection: Connection,
        raw: Any,
        domain: Domain,
        *,
        was_running: bool,
        transient: bool,
        autostart: Autostart | None = None,
    ) -> None:
        self.connection = connection
        self.raw = raw
        self.domain = domain
        self.was_running = was_running
        self.transient = transient
        self.autostart = Autostart(None) if autostart is None else autostart
        self.gone = ""
        self._asked_at = 0.0

    async def state(self) -> int:
        """Its ``virDomainState``; NONE where there is no such domain any more."""
        return (await self._state_and_reason())[0]

    async def _state_and_reason(self) -> tuple[int, int]:
        if self.raw is None:
            return State.NONE, 0
        try:
            state, reason = await ask(self.raw.state, 0)
        except RefusedError as error:
            if error.code != NO_DOMAIN:
                raise
            return State.NONE, 0
        return state, reason

    async def is_there(self) -> bool:
        """Whether it has a machine, which runs or is paused."""
        return await self.state() in _THERE

    async def busy(self) -> bool:
        """Whether libvirt has a job for it."""
        return self.raw is not None and bool((await ask(self.raw.jobInfo))[0])

    async def find_again(self) -> None:
        """Libvirtd went away: connect again, as soon as it is back."""
        old = self.connection
        self.connection = await Connection.open_again(old.uri, _BACK_WITHIN)
        self.raw = await self.connection.domain(str(self.domain.uuid))
        await old.close()

    async def tell_qemu(self, command: str, **arguments: Any) -> Any:
        """Say something to its QEMU: see ``connection.tell_qemu``."""
        self._asked_at = time.monotonic()
        try:
            return await tell_qemu(self.raw, command, **arguments)
        finally:
            self._asked_at = 0.0

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, device: str = ""
    ) -> Any:
        """Have its QEMU do something that must not be refused: see ``connection.have_qemu``."""
        return await have_qemu(self.raw, command, arguments or {}, device=device)

    @property
    def unanswered(self) -> float:
        """Seconds for which its QEMU has not answered ``tell_qemu``; 0 where it owes no answer."""
        return time.monotonic() - self._asked_at if self._asked_at else 0.0

    async def go_on(self) -> None:
        """Have QEMU go on with a guest that it has stopped, as its storage was full.

        Also where libvirtd went away and is back.
        """
        try:
            await self._go_on()
        except LostError:
            await self.find_again()
            await self._go_on()

    async def _go_on(self) -> None:
        if await self._state_and_reason() == (State.PAUSED, PAUSED_BY_IO_ERROR) and wants_room(
            await self.tell_qemu("query-block")
        ):
            await ask(self.raw.resume)

    async def suspend(self) -> None:
        """Stop the guest and keep it, also where libvirtd went away and is back."""
        try:
            if self.raw is not None:
                await ask(self.raw.suspend)
        except LostError:
            await self.find_again()
            if self.raw is not None:
                await ask(self.raw.suspend)

    async def run_again(self) -> None:
        """Let the guest run; one that runs already goes on, one that was paused stays so.

        Raises:
            GoneError: Its guest has ended.
            HypervisorError: libvirt does not let it.
        """
        state = await self._settled()
        if state in {State.RUNNING, State.BLOCKED}:
            return
        if await self.is_off(state):
            self.gone = await self._why_gone()
            raise GoneError(f"the machine of {self.domain.name} is gone: {self.gone}")
        if self.was_running:
            try:
                await ask(self.raw.resume)
            except RefusedError:
                if await self.state() != State.RUNNING:
                    raise

    async def is_off(self, state: int) -> bool:
        """Whether a domain in this state has no machine any more.

        Raises:
            HypervisorError: So libvirtd says, which could not take it up again; its QEMU runs on.
        """
        if state not in OFF | {State.NONE}:
            return False
        if state != State.CRASHED:  # then its QEMU may be kept, to be looked at
            await check_ended(self.domain.name, str(self.domain.uuid))
        return True

    async def _settled(self) -> int:
        """Its state, once it is not about to change: a guest that shuts down is soon off.

        Or it runs again, where its user has libvirt make a reboot of that.
        """
        deadline = time.monotonic() + _SHUTS_DOWN_WITHIN
        # It is asked after its libvirtd may have gone away, and the events with it.
        while (state := await self.state()) == State.SHUTDOWN:
            if time.monotonic() > deadline:
                raise HypervisorError(
                    f"{self.domain.name} shuts down, and does not end",
                    remedy=f"`virsh destroy {self.domain.name}` ends it",
                )
            await asyncio.sleep(_SOON)
        return state

    async def _why_gone(self) -> str:
        """What its libvirtd says of a domain that is off; a libvirtd that was restarted knows less.

        It need not have told anybody: it may have gone away itself as the guest ended.
        """
        state, reason = await self._state_and_reason()
        said = SHUT_OFF.get(reason) if state == State.SHUT_OFF else None
        return f"its machine has ended ({said or 'libvirt does not know why'})"

    async def end(self) -> None:
        """End it; a definition that it has stays. What is gone already is no error."""
        await self._end(forget=False)

    async def destroy(self) -> None:
        """End it and forget its definition; what is gone already is no error."""
        await self._end(forget=True)

    async def _end(self, *, forget: bool) -> None:
        name = self.domain.name
        if self.raw is not None:
            with contextlib.suppress(RefusedError):  # it does not run
                await ask(self.raw.destroy)
            if forget:
                await undefine(self.raw, name, here=True)
            if await self.is_there():
                raise HypervisorError(
                    f"libvirt does not end {name}", remedy=f"virsh destroy {name}"
                )
        await check_ended(name, str(self.domain.uuid))

"""The guest's notice: a program in the guest is told before it moves, and again when it has.

The guest's agent runs it: ``PROGRAM before TARGET`` while the guest still runs on the source, after
every device of step 1 is prepared; ``PROGRAM after SOURCE`` as soon as it runs on the target, and
``PROGRAM back TARGET`` where it runs on at the source: the migration has failed, or a checkpoint is
kept. One that fails before keeps the guest where it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from entourage.devices.base import Controller, Here, There
from entourage.devices.refusals import no_way, refuse
from entourage.domain import Device
from entourage.errors import DeviceError, HypervisorError
from entourage.steps import Planned, Refusal, Step

_NO_AGENT = "its hypervisor has no way to the guest's agent"


class Notice(Device, frozen=True):
    """Whom the guest's agent tells.

    Attributes:
        program: The path of a program in the guest.
    """

    device_class: ClassVar[str] = "notice"
    program: Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{1,255}\Z")]


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """TEST asks the target: can the guest be told there?"""


class NoticeController(Controller[Notice]):
    """Tells the guest of its own migration."""

    device_class = "notice"
    spec = Notice
    undoes_prepare = True

    def __init__(self, device: Notice) -> None:
        super().__init__(device)
        self._told = False
        self._telling: asyncio.Task[None] | None = None  # on the target

    def memo(self) -> dict[str, Any]:
        """That it may have been told: it is told that it stays, then.

        Written down before it is told: after a crash nobody knows whether it was.
        """
        return {"told": True}

    def recall(self, memo: dict[str, Any]) -> None:
        """After a crash."""
        self._told = bool(memo.get("told"))

    def planned(self, here: Here) -> Planned:  # noqa: ARG002 - see base
        """Nothing of it moves."""
        return Planned(action="in-place", here=self.device.program, there=self.device.program)

    async def test(self, here: Here) -> Sequence[Refusal]:
        """Whether the guest can be told here; and there, once it has arrived."""
        agent = here.machine.guest_agent
        if agent is None:
            return [no_way(self.device, here.source, _NO_AGENT, "take the notice out")]
        found = [
            refuse(self.device, here.source, reason, remedy)
            for reason, remedy in await agent.objections()
        ]
        return [*found, *await here.peer(_Asked(), list[Refusal])]

    async def test_there(self, there: There, request: Any) -> Any:  # noqa: ARG002 - has no words
        """A save tells nobody; who restores it does."""
        if there.incoming.is_save or there.incoming.guest_agent is not None:
            return []
        return [no_way(self.device, there.host, _NO_AGENT)]

    async def connect(self, here: Here) -> None:
        """The last thing before memory is copied. The guest may say no."""
        agent = here.machine.guest_agent
        if agent is not None:
            self._told = True
            try:
                await agent.run(self.device.program, ("before", here.target))
            except HypervisorError as error:
                raise DeviceError(
                    f"the guest was to be told that it moves: {error.message}",
                    remedy=error.remedy or f"see in the guest what {self.device.program} says",
                ) from error

    async def recover(self, here: Here, last_good: Step) -> None:  # noqa: ARG002 - known better here
        """It runs on here."""
        agent = here.machine.guest_agent
        if self._told and agent is not None:
            self._told = False
            await _tell(agent.run(self.device.program, ("back", here.target)), "it stayed")

    async def arrived(self, there: There) -> None:
        """It runs here now: begin to tell it. What it does then may take its time."""
        agent = there.incoming.guest_agent
        if agent is not None:
            running = agent.run(self.device.program, ("after", there.source))
            self._telling = asyncio.create_task(_tell(running, "it has moved"))

    async def finish_arrival(self, there: There) -> None:  # noqa: ARG002 - see base
        """See its program end."""
        telling, self._telling = self._telling, None
        if telling is not None:
            await telling


async def _tell(running: Any, what: str) -> None:
    try:
        await running
    except HypervisorError as error:
        raise DeviceError(
            f"the guest was not told that {what}: {error.message}", remedy=error.remedy
        ) from error

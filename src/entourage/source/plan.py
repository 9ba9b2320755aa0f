"""What TEST says of the migration as a whole: the way of its data, and what will be done."""

from __future__ import annotations

import dataclasses

from entourage import messages
from entourage.device_steps import DeviceSteps
from entourage.errors import EntourageError
from entourage.events import MigrationPlanned, PlannedDevice
from entourage.hosts.address import data_address
from entourage.hosts.dataway import prove_all
from entourage.source.session import Session
from entourage.steps import Planned, Refusal

_COPIED = "copied"


@dataclasses.dataclass(slots=True)
class MovePlan:
    """What will be done, and what speaks against the way that the data takes.

    Args:
        session: All that is open.
        devices: What will be done with each that is not refused, by label.
        ports: The range that memory and disks are taken at; None where they use none.
    """

    session: Session
    devices: list[tuple[str, Planned]]
    ports: tuple[int, int] | None = None

    @classmethod
    def of(cls, session: Session, steps: DeviceSteps, found: list[Refusal]) -> MovePlan:
        """The plan of a domain whose devices have been asked.

        Args:
            session: All that is open.
            steps: Its devices.
            found: What speaks against it.
        """
        return cls(session, steps.planned({refusal.device for refusal in found}))

    async def prove_way(self) -> list[Refusal]:
        """Find the target's address, and connect to as many of its ports as will be needed."""
        session = self.session
        try:
            if session.is_agentless:  # who is there cannot be asked to listen
                wanted = session.settings.migration.data_address
                session.address = wanted or session.welcome.address
                return []
            return await self._proven()
        except EntourageError as error:
            return [Refusal("domain", error.host or session.target, error.message, error.remedy)]

    async def _proven(self) -> list[Refusal]:
        session = self.session
        heard, wanted = session.welcome.address, session.settings.migration
        knows_ways = session.welcome.protocol >= messages.PROVES_WAYS
        try:
            session.address = await data_address(session.target, heard, session.settings)
        except EntourageError:
            way = messages.Way(ports=wanted.ports)
            if knows_ways and not (await session.link.call(messages.WAY, way)).range:
                return []  # no address is needed
            raise
        if not knows_ways:
            return []
        copied = any(planned.action == _COPIED for _, planned in self.devices)
        way = messages.Way(
            address=session.address, ports=wanted.ports, connections=2 if copied else 1
        )
        awaited = await session.link.call(messages.WAY, way)
        if awaited.range is None:
            return []
        first, last = self.ports = awaited.range
        problem = await prove_all(session.address, awaited.ports, awaited.token)
        if problem is None:
            return []
        remedy = (
            f"let {session.source} reach TCP ports {first} to {last} of {session.target};"
            " or name another address of it, --data-address, or other ports, --ports"
        )
        return [Refusal("memory", session.target, problem.message, remedy)]

    def event(self, at: float) -> MigrationPlanned:
        """The plan, for whoever looks on.

        Args:
            at: Seconds into the migration.
        """
        memory = Planned(action=_COPIED, size=self.session.machine.domain.memory)
        return MigrationPlanned(
            at=at,
            devices=tuple(
                PlannedDevice(device=label, **dataclasses.asdict(planned))
                for label, planned in (*self.devices, ("memory", memory))
            ),
            address=self.session.address if self.ports else "",
            ports=self.ports or (),
            encrypted=self.session.settings.migration.tls,
        )

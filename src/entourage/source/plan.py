"""What TEST says of the migration as a whole: the way of its data, and what will be done."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence

import msgspec

from entourage import messages
from entourage.device_steps import DeviceSteps
from entourage.errors import EntourageError, HypervisorError, LinkError
from entourage.events import MigrationPlanned, PlannedDevice
from entourage.hosts.address import data_addresses
from entourage.hosts.dataway import TOKEN, prove_all
from entourage.hypervisors.reach import NOT_OURS, PRIVILEGED
from entourage.source.doings import DOINGS
from entourage.source.session import Session
from entourage.steps import Planned, Refusal

_COPIED = "copied"
_HIGHEST = 65535


@dataclasses.dataclass(slots=True)
class MovePlan:
    """What will be done, and what speaks against the way that the data takes.

    Args:
        session: All that is open.
        devices: What will be done with each that is not refused, by label.
        ports: The range that memory and disks are taken at; None where they use none.
        offers: What the target's hypervisor has, in its own words; None where it has not said.
    """

    session: Session
    devices: list[tuple[str, Planned]]
    ports: tuple[int, int] | None = None
    offers: Mapping[str, str] | None = None

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
        """Find the target's address, and connect to as many of its ports as will be needed.

        Raises:
            LinkError: The target went away meanwhile.
        """
        session = self.session
        heard, wanted = session.welcome.address, session.settings.migration
        session.address = wanted.data_address or heard
        if session.is_agentless or not DOINGS[session.kind].moves:  # nobody there, or no way
            return []
        knows_ways = session.welcome.protocol >= messages.PROVES_WAYS
        try:
            addresses = await data_addresses(session.target, heard, session.settings)
            if not knows_ways:
                session.address = addresses[0]
                return []
            return await self._first_proven(addresses)
        except LinkError:
            raise
        except EntourageError as error:
            if await self._needs_no_address(knows=knows_ways):
                return []
            return [Refusal("domain", error.host or session.target, error.message, error.remedy)]

    async def _needs_no_address(self, *, knows: bool) -> bool:
        """Whether all goes through ssh; an older agent is not asked, and what it does is seen."""
        session = self.session
        if not knows:
            session.address = session.address or session.target.rpartition("@")[2]
            return True
        way = messages.Way(ports=session.settings.migration.ports)
        try:
            awaited = await session.link.call(messages.WAY, way)
        except LinkError:
            raise
        except EntourageError:  # as where these ports are not allowed there
            return False
        self.offers = awaited.offers
        return awaited.range is None

    async def _first_proven(self, addresses: Sequence[str]) -> list[Refusal]:
        """Use the first of these addresses by which all ports can be reached."""
        problem: EntourageError | None = None
        for address in addresses:
            self.session.address = address
            try:
                failed = await self._proof(address)
            except LinkError:
                raise
            except EntourageError as error:  # nothing can listen at that one
                failed = error
            if failed is None:
                return []
            problem = problem or failed
        if problem is None or self.ports is None:
            raise problem or HypervisorError("no address of the target is known")
        first, last = self.ports
        session = self.session
        others = (
            "other ports, --ports"
            if self.ports == session.settings.migration.ports
            else ("other ports, migration_port_min and _max in qemu.conf there")
        )
        remedy = (
            f"let {session.source} reach TCP ports {first} to {last} of {session.target};"
            f" or name another address of it, --data-address, or {others}"
        )
        return [Refusal("memory", session.target, problem.message, problem.remedy or remedy)]

    async def _proof(self, address: str) -> EntourageError | None:
        """Why not all ports that are needed can be reached by an address; None where they can."""
        session = self.session
        wanted = session.settings.migration.ports
        copied = any(planned.action == _COPIED for _, planned in self.devices)
        token, connections = secrets.token_bytes(TOKEN), 2 if copied else 1
        way = messages.Way(address=address, ports=wanted, connections=connections, token=token)
        awaited = await session.link.call(messages.WAY, way)
        self.offers = awaited.offers
        if awaited.range is None:
            return None
        _check(awaited, wanted, connections)
        self.ports = awaited.range
        return await prove_all(address, awaited.ports, token)

    def _encrypted(self) -> bool | None:
        if not DOINGS[self.session.kind].moves:  # nothing travels
            return None
        wanted = self.session.settings.migration.tls
        return self.session.machine.encrypts(self.offers, wanted=wanted)

    def event(self, at: float) -> MigrationPlanned:
        """The plan, for whoever looks on.

        Args:
            at: Seconds into the migration.
        """
        machine = self.session.machine
        memory = Planned(action=_COPIED, size=machine.domain.memory)
        rows = [*self.devices, ("memory", memory)]
        if machine.definition is not None:
            rows.insert(len(self.devices), ("definition", machine.definition))
        return MigrationPlanned(
            at=at,
            devices=tuple(
                PlannedDevice(device=label, **msgspec.structs.asdict(planned))
                for label, planned in rows
            ),
            address=self.session.address if self.ports else "",
            ports=self.ports or (),
            encrypted=self._encrypted(),
        )


def _check(awaited: messages.WayAwaited, wanted: tuple[int, int], connections: int) -> None:
    """See that a target names ports of the range that it was given, or of its hypervisor's own.

    Raises:
        HypervisorError: It names others.
    """
    first, last = awaited.range or wanted
    own = PRIVILEGED <= first <= last <= _HIGHEST
    ports = set(awaited.ports)
    within = all(first <= port <= last for port in ports)
    if not ((awaited.range == wanted or own) and within and len(ports) == connections):
        raise HypervisorError(
            f"the target waits at ports {sorted(ports)} of {first} to {last}, and was asked for"
            f" {connections} of {wanted[0]} to {wanted[1]}",
            remedy=NOT_OURS,
        )

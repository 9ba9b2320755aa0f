"""A toolstack's domains whose migrations are attended, as a hypervisor."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from entourage.domain import TOOL_TYPES, Domain
from entourage.errors import UsageError
from entourage.hosts.parts import HostPart
from entourage.hosts.resources import Ledger
from entourage.hypervisors.attended.incoming import AttendedIncoming
from entourage.hypervisors.attended.machine import AttendedMachine
from entourage.hypervisors.attended.origin import ask_source
from entourage.hypervisors.attended.switchover import TargetSwitchover
from entourage.hypervisors.attended.toolstack import Toolstack, Watch
from entourage.hypervisors.base import DomainState, Incoming, Machine
from entourage.settings.model import Settings
from entourage.steps import Refusal

_NOT_OURS = "its migration is somebody else's, and only attended"


class AttendedHypervisor:
    """The domains of a toolstack, as far as their migrations are attended.

    Args:
        name: As journals have it.
        toolstack: This host's.
        switchover: Of the domain that arrives; None where migrations are only looked at.
        watch: What is heard of that domain.
        uuid: Of that domain: no other is taken.
        settings: This host's; None where no source is to be asked.
    """

    def __init__(
        self,
        name: str,
        toolstack: Toolstack,
        switchover: TargetSwitchover | None = None,
        watch: Watch | None = None,
        uuid: str | None = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        self._uuid = uuid
        self._settings = settings
        self.name = name
        self._toolstack = toolstack
        self._switchover = switchover
        self._watch = watch

    async def domains(self) -> Sequence[DomainState]:
        """None of its own: they are the toolstack's."""
        return ()

    async def find(self, name: str) -> Domain:
        """None of its own; raises UsageError."""
        raise UsageError(f"{name}: {_NOT_OURS}")

    async def machine(self, name: str) -> Machine:
        """None of its own; raises UsageError."""
        raise UsageError(f"{name}: {_NOT_OURS}")

    async def reattach_machine(self, domain: Domain) -> Machine:
        """What the toolstack has of it."""
        return AttendedMachine(self._toolstack, domain)

    def incoming(self, domain: Domain, ledger: Ledger) -> Incoming:  # noqa: ARG002 - makes nothing
        """A machine that the toolstack builds."""
        ask = None
        if self._settings is not None:
            ask = functools.partial(ask_source, self._settings, domain.uuid or "")
        return AttendedIncoming(self._toolstack, domain, self._switchover, self._watch, ask)

    async def test_incoming(
        self,
        domain: Domain,
        host: str,
        facts: Mapping[str, str],  # noqa: ARG002 - see base
    ) -> Sequence[Refusal]:
        """What is not ours to take: the toolstack judges its own part itself.

        Only the daemon takes domains; an agent that somebody has started by ssh only says what
        became of one.
        """
        if self._switchover is None:
            reason = "no daemon attends that migration here"
            return [Refusal("domain", host, reason, f"see whether entourage-attend runs on {host}")]
        remedy = "see that both hosts have the same Entourage"
        found = [
            Refusal(device.label, host, "it is the toolstack's to move", remedy)
            for device in domain.devices
            if device.device_class in TOOL_TYPES
        ]
        if self._uuid is not None and domain.uuid != self._uuid:
            found.append(Refusal("domain", host, "it is another one than is about to come", remedy))
        return found

    async def host_parts(self, facts: Mapping[str, str]) -> Sequence[HostPart]:  # noqa: ARG002
        """None: it names nothing of the host."""
        return ()

    async def start(self, domain: Domain) -> None:
        """None of its own; raises UsageError."""
        raise UsageError(f"{domain.name}: {_NOT_OURS}")

    async def stop(self, name: str, *, force: bool, patience: float) -> None:  # noqa: ARG002
        """None of its own; raises UsageError."""
        raise UsageError(f"{name}: {_NOT_OURS}")

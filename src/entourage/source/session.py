"""All that a migration has open while it goes on: machine, lock, journal and the link."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from entourage import messages
from entourage.clock import Clock
from entourage.devices.base import AnyController, Here, Options
from entourage.errors import EntourageError, LinkLost
from entourage.events import Kind, Listener
from entourage.handover.values import Message, Role
from entourage.hosts.link import Link
from entourage.hosts.local import too_long
from entourage.hosts.proxy_agent import own_settings
from entourage.hosts.route import host_of
from entourage.hosts.ssh import forwarded
from entourage.hypervisors.base import DataPlane, Machine, Secret
from entourage.hypervisors.registry import (
    elsewhere,
)
from entourage.hypervisors.values import LocalData
from entourage.journal.details import SourceDetails
from entourage.journal.journal import Journal, MigrationLedger
from entourage.journal.lock import DomainLock
from entourage.settings.model import Settings
from entourage.source.doings import DOINGS
from entourage.steps import Refusal, Step

Reply = TypeVar("Reply")


_MOST_TOLD = 100  # failures of a target that are kept
_WEAKER = (
    "has no Entourage: this host keeps its half of the record, asks its libvirt over the network,"
    " and cannot put its TPM's state on the disk (docs/libvirt.md tells what is weaker)"
)


class FailuresThere:
    """What went wrong on the target without having been asked for."""

    def __init__(self) -> None:
        self.all: list[EntourageError] = []
        self._arrived = asyncio.Event()

    def add(self, error: EntourageError) -> None:
        """The target has told of one."""
        if len(self.all) < _MOST_TOLD:
            self.all.append(error)
        self._arrived.set()

    @property
    def last(self) -> EntourageError | None:
        """The last of them, if any."""
        return self.all[-1] if self.all else None

    async def first(self) -> NoReturn:
        """Wait for the first, and raise it."""
        await self._arrived.wait()
        raise self.all[0]


@dataclass(slots=True)
class Session:
    """All that a migration has open.

    Attributes:
        migration: The migration's id.
        kind: What is done with the domain.
        host: This host's name.
        source, target: The names of both hosts; of a save, its directory is one of them.
        hypervisor: The name of this host's.
        hypervisor_there: The name of the target's, of the same kind: who has it is asked.
        machine: The running domain.
        journal, lock: This host's, for this domain.
        link: To the target's agent; another one after it was lost in doubt.
        welcome: What the agent said of itself.
        clock: Puts both hosts' moments on one scale.
        held: Takes what else is to be closed at the end.
        has_landed_there: Set when the target has said LANDED.
        failures_there: What went wrong on the target without having been asked for.
        blockers: What the hypervisor itself marks as not migratable.
        landed: Both sides have said that memory is all there.
        synced_at: When all devices had gone through SYNC, ns of the monotonic clock; 0 before.
        address: Where memory and disks go, once TEST has found it out; numeric, or empty where the
            hypervisor knows best.
    """

    migration: str
    kind: Kind
    host: str
    source: str
    target: str
    hypervisor: str
    hypervisor_there: str
    settings: Settings
    options: Options
    tool: str | None
    machine: Machine
    journal: Journal
    lock: DomainLock
    link: Link
    welcome: messages.Welcome
    clock: Clock
    emit: Listener
    held: contextlib.AsyncExitStack
    has_landed_there: asyncio.Event = field(default_factory=asyncio.Event)
    failures_there: FailuresThere = field(default_factory=FailuresThere)
    blockers: tuple[Refusal, ...] = ()
    landed: bool = False
    synced_at: int = 0
    address: str = ""

    @property
    def uuid(self) -> str:
        """The domain's UUID; a running domain has one."""
        return self.machine.domain.uuid or ""

    @property
    def is_agentless(self) -> bool:
        """Whether no Entourage is on the target, and a proxy agent answers for it."""
        there = elsewhere(self.hypervisor_there)
        return there is not None and there.is_host

    @property
    def keeper(self) -> str:
        """The host that the target's half of the record is on."""
        if DOINGS[self.kind].moves:
            return self.host if self.is_agentless else self.target
        return host_of(self.target) or self.host

    @property
    def weaker(self) -> str:
        """What the user is to know of that; empty where an agent is there."""
        return f"{self.target} {_WEAKER}" if self.is_agentless else ""

    def plane(self, generation: int, *, paused: bool) -> DataPlane:
        """How disks and memory will travel, with a fresh key.

        Args:
            generation: The domain's, as this host's journal counts it.
            paused: The guest was paused by its user.
        """
        wanted = self.settings.migration
        local = None
        if not DOINGS[self.kind].moves:
            disks = {disk.id: disk.path for disk in self.machine.domain.block}
            local = LocalData(
                socket=_local_socket(self.settings, self.migration),
                far=bool(host_of(self.target)),
                generation=generation,
                paused=paused,
                checkpoint=DOINGS[self.kind].goes_on,
                copies={disk: disks[disk] for disk in self.options.copies},
                sealed=self.options.sealed,
                filters=self.options.filters,
                revert=self.options.revert,
                mark=self.options.mark,
                since=self.options.since,
            )
        encrypted = wanted.tls and local is None
        secret = Secret("entourage", secrets.token_bytes(32)) if encrypted else None
        return DataPlane(
            local=local,
            address=self.address,
            ports=wanted.ports,
            secret=secret,
            bandwidth=wanted.bandwidth,
            host=self.target,
        )

    def sockets_too_long(self) -> list[Refusal]:
        """Whether what is saved or restored could not be listened for."""
        local = self.plane(0, paused=False).local
        if local is None or not too_long(*local.sockets):
            return []
        reason = f"{self.settings.paths.run} is too long a path for sockets to be in"
        remedy = "set paths.run to a shorter one, or give the disks that are copied shorter names"
        return [Refusal("domain", self.host, reason, remedy)]

    async def forward(self, plane: DataPlane) -> None:
        """Have ssh take what goes to a save on another host.

        What this host listens at is written down before it is made, also what a hypervisor does.

        Args:
            plane: What ``plane`` has said.

        Raises:
            LinkLost: It does not.
        """
        local, far = plane.local, host_of(self.target)
        if local is None or not local.passed_on:
            return
        sockets = [local.socket, *(local.disk_socket(disk) for disk in sorted(local.copies))]
        ledger = MigrationLedger(self.journal, self.migration, Role.SOURCE)
        for path in (local.source_socket, *(sockets if local.far else ())):
            ledger.record("scratch", path=path)
        if not local.far:
            return
        await self.held.enter_async_context(forwarded(far, self.settings, sockets))

    def here(self, controller: AnyController, half: str, settled: Callable[[], None]) -> Here:
        """What the source half of a controller works with, in this half of a step."""
        label = controller.device.label

        async def peer(request: Any, reply: type[Reply]) -> Reply:
            ask = messages.AskDevice(device=label, half=half, request=request)
            return await self.link.call(messages.DEVICE.replying(reply), ask)

        return Here(
            migration=self.migration,
            source=self.source,
            target=self.target,
            machine=self.machine,
            settings=self.settings,
            options=self.options,
            peer=peer,
            emit=self.emit,
            now=self.clock.now,
            blockers=self.blockers,
            settled=settled,
        )

    def send(self, message: Message) -> None:
        """Send a hand-over message, if there is a link; nobody waits for its arrival."""
        with contextlib.suppress(LinkLost):
            self.link.tell(messages.HANDOVER, messages.Say(message.kind.value, message.migration))

    def details(self, step: Step, controllers: Sequence[AnyController] = ()) -> SourceDetails:
        """What recovery needs on this host: no key, no secret."""
        return SourceDetails(
            domain=self.machine.domain,
            was_running=self.machine.was_running,
            hypervisor=self.hypervisor,
            hypervisor_there=self.hypervisor_there,
            ssh=self.settings.ssh,
            keep_source_disks=self.options.keep_source_disks,
            tool=self.tool,
            tools=self.settings.tool,
            step=step,
            memos={
                controller.device.label: controller.memo()
                for controller in controllers
                if step > Step.TEST or controller.undoes_prepare
            },
        )

    def note(self, doing: str) -> None:
        """Set what ``status`` shows of this migration; costs no sync."""
        self.lock.note(f"migrates {self.machine.domain.name} to {self.target}: {doing}")

    def progress(self, doing: str) -> None:
        """Do ``note``, and tell the target, for its ``status``. Never called in the blackout."""
        self.note(doing)
        if self.welcome.protocol >= messages.TOLD_PROGRESS:
            with contextlib.suppress(LinkLost):
                said = messages.Progress(doing=doing[: messages.MOST_TOLD])
                self.link.tell(messages.PROGRESS, said)

    async def landed_there(self) -> None:
        """Wait until the target has said that all of memory is there."""
        await self.has_landed_there.wait()


def _local_socket(settings: Settings, migration: str) -> str:
    """Where memory is taken that does not leave this host, or leaves it by ssh alone."""
    return str(Path(own_settings(settings).paths.run, f"{migration}.sock"))

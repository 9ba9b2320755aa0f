"""This host's libvirt domains."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entourage.domain import Domain
from entourage.errors import DomainBusy, HypervisorError, UsageError
from entourage.hosts.parts import HostPart
from entourage.hosts.resources import Ledger
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DomainState, Incoming, Machine
from entourage.hypervisors.libvirt import checks, definitions, handed
from entourage.hypervisors.libvirt.autostart import Autostart
from entourage.hypervisors.libvirt.connection import (
    Connection,
    RefusedError,
    ask,
    bindings,
    phases,
)
from entourage.hypervisors.libvirt.constants import STATE_NAMES, State
from entourage.hypervisors.libvirt.domainxml import read_domain, side_text
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.incoming import LibvirtIncoming
from entourage.hypervisors.libvirt.lookups import lookups_of
from entourage.hypervisors.libvirt.machine import LibvirtMachine
from entourage.hypervisors.libvirt.process import pid_of
from entourage.hypervisors.libvirt.restoring import RestoringIncoming
from entourage.hypervisors.side import read_side, with_side
from entourage.hypervisors.values import RESTORES, Definition
from entourage.settings.model import Settings
from entourage.steps import Refusal

_THERE = frozenset({State.RUNNING, State.BLOCKED, State.PAUSED, State.SUSPENDED, State.SHUTDOWN})
_LOOK_EVERY = 0.2


class LibvirtHypervisor:
    """The domains of one libvirtd.

    Args:
        settings: This host's.
        uri: As virsh's ``--connect``.
    """

    def __init__(self, settings: Settings, uri: str) -> None:
        self._settings = settings
        self._uri = uri
        self._restores = False
        self.name = uri

    async def domains(self) -> Sequence[DomainState]:
        """All domains that this libvirtd knows."""
        connection = await Connection.open(self._uri, read_only=True)

        def look() -> list[DomainState]:
            return [state for raw in connection.raw.listAllDomains(0) if (state := _state(raw))]

        try:
            return await ask(look)
        finally:
            await connection.close()

    async def find(self, name: str) -> Domain:
        """The running (or last known) configuration; raises UsageError where there is none."""
        connection = await Connection.open(self._uri)
        try:
            return await self._read(connection, await self._named(connection, name))
        finally:
            await connection.close()

    async def machine(self, name: str) -> Machine:
        """Open a running domain; raises UsageError where there is none, or it does not run."""
        await in_thread(phases)
        connection = await Connection.open(self._uri)
        try:
            raw = await self._named(connection, name)
            state = (await ask(raw.state, 0))[0]
            if state in _THERE:
                return await self._machine(connection, raw, state)
        except BaseException:
            await connection.close()
            raise
        await connection.close()
        raise UsageError(f"{name} does not run", remedy=f"`virsh start {name}` starts it")

    async def reattach_machine(self, domain: Domain) -> Machine:
        """What is left here of a domain whose migration another process began."""
        connection = await Connection.open(self._uri)
        try:
            raw = await connection.domain(str(domain.uuid))
            if raw is not None:
                return await self._machine(connection, raw, (await ask(raw.state, 0))[0], domain)
        except BaseException:
            await connection.close()
            raise
        log = self._log(domain.name)
        held = self._autostart(domain)
        gone = Handle(connection, None, domain, was_running=True, transient=False, autostart=held)
        return LibvirtMachine(gone, log)

    async def _machine(
        self, connection: Connection, raw: Any, state: int, domain: Domain | None = None
    ) -> LibvirtMachine:
        domain = domain or await self._read(connection, raw)
        handle = Handle(
            connection,
            raw,
            domain,
            was_running=state in {State.RUNNING, State.BLOCKED},
            transient=not await ask(raw.isPersistent),
            autostart=self._autostart(domain),
        )
        return LibvirtMachine(handle, self._log(domain.name))

    def _autostart(self, domain: Domain) -> Autostart:
        return Autostart(Path(self._settings.paths.state, f"{domain.uuid}.autostart"))

    def _log(self, name: str) -> Path:
        return Path(self._settings.paths.log, f"{name}.log")

    def incoming(self, domain: Domain, ledger: Ledger) -> Incoming:
        """A machine to be built here.

        Of a machine that moves nothing is made that a ledger could name: libvirtd itself ends what
        nobody finishes. What is restored has a file of its own, and servers for its disks.
        """
        restoring = Path(self._settings.paths.state, f"{domain.uuid}.restoring")
        if self._restores or restoring.exists():
            return RestoringIncoming(self._uri, domain, restoring, ledger)
        return LibvirtIncoming(self._uri, domain, self._notes(domain))

    def _notes(self, domain: Domain) -> Path:
        """The file of what is to be done when a domain arrives."""
        return Path(self._settings.paths.state, f"{domain.uuid}.arrival")

    async def test_incoming(
        self, domain: Domain, host: str, facts: Mapping[str, str]
    ) -> Sequence[Refusal]:
        """What speaks against building this domain here."""
        await in_thread(phases)
        self._restores = RESTORES in facts
        connection = await Connection.open(self._uri)
        try:
            return await checks.test_incoming(connection, domain, host, facts, files=True)
        finally:
            await connection.close()

    async def host_parts(self, facts: Mapping[str, str]) -> Sequence[HostPart]:
        """What of this host its XML names, as the source has told it."""
        connection = await Connection.open(self._uri)
        try:
            return await handed.told(connection, facts)
        finally:
            await connection.close()

    async def start(self, domain: Domain) -> None:
        """Start a domain that libvirt has the definition of.

        Raises:
            UsageError: libvirt does not know it.
            DomainBusy: It runs already.
            HypervisorError: libvirt refused.
        """
        connection = await Connection.open(self._uri)
        try:
            raw = await self._named(connection, domain.name)
            if (await ask(raw.state, 0))[0] in _THERE:
                raise DomainBusy(f"{domain.name} runs here already")
            await ask(raw.create)
        finally:
            await connection.close()

    async def stop(self, name: str, *, force: bool, patience: float) -> None:
        """Shut a domain down (ACPI), or end it at once with ``force``.

        Raises:
            UsageError: There is none, or it does not run.
            HypervisorError: The guest did not shut down in time.
        """
        connection = await Connection.open(self._uri)
        try:
            raw = await self._named(connection, name)
            if (await ask(raw.state, 0))[0] not in _THERE:
                raise UsageError(f"{name} does not run")
            if force:
                await ask(raw.destroy)
                return
            await ask(raw.shutdown)
            async with asyncio.timeout(patience):
                with contextlib.suppress(RefusedError):  # a transient one is gone then
                    while (await ask(raw.state, 0))[0] in _THERE:  # noqa: ASYNC110 - it is asked
                        await asyncio.sleep(_LOOK_EVERY)
        except TimeoutError as error:
            raise HypervisorError(
                f"{name} has not shut down within {patience:g} s",
                remedy="its guest may ignore the power button; --force ends it at once",
            ) from error
        finally:
            await connection.close()

    async def definition(self, name: str) -> Definition:
        """A domain that is off; see ``HasDefinitions``."""
        connection = await Connection.open(self._uri)
        try:
            raw = await self._named(connection, name)
            domain = await self._read(connection, raw)
            return await definitions.definition(connection, raw, domain)
        finally:
            await connection.close()

    async def define(self, definition: Definition) -> None:
        """Define one that is off; see ``HasDefinitions``."""
        connection = await Connection.open(self._uri)
        try:
            await definitions.define(connection, definition)
        finally:
            await connection.close()

    async def undefine(self, definition: Definition) -> None:
        """Forget it; see ``HasDefinitions``."""
        connection = await Connection.open(self._uri)
        try:
            await definitions.undefine(connection, definition)
        finally:
            await connection.close()

    async def _named(self, connection: Connection, name: str) -> Any:
        raw = await connection.named(name)
        if raw is None:
            raise UsageError(
                f"there is no domain {name!r} in {self._uri}",
                remedy=f"virsh -c {self._uri} list --all shows what there is",
            )
        return raw

    async def _read(self, connection: Connection, raw: Any) -> Domain:
        def read() -> tuple[Domain, str]:
            text: str = raw.XMLDesc(0)
            return read_domain(text, lookups_of(connection)), side_text(text)

        domain, written = await ask(read)
        return with_side(domain, read_side(domain.name, written))


def _state(raw: Any) -> DomainState | None:
    """A line of the list; None where the domain has gone meanwhile."""
    try:
        state, _, memory, vcpus, _ = raw.info()
        name = STATE_NAMES.get(state, "unknown")
        if state == State.PAUSED and _incoming(raw):
            name = "incoming"
        return DomainState(
            name=raw.name(),
            uuid=raw.UUIDString(),
            state=name,
            memory=raw.maxMemory() << 10 if state in _THERE else memory << 10,
            vcpus=vcpus,
            pid=pid_of(raw.name()) or None if state in _THERE else None,
        )
    except bindings().libvirtError:
        return None


def _incoming(raw: Any) -> bool:
    """Whether it is on its way in: paused by libvirt, and with no definition yet."""
    paused_for_migration, paused_starting = 2, 11
    return not raw.isPersistent() and raw.state(0)[1] in {paused_for_migration, paused_starting}

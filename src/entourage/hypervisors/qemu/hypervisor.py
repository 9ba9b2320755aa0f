"""This host's QEMU domains."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from entourage.domain import Domain
from entourage.errors import (
    DomainBusy,
    EntourageError,
    GoneError,
    HypervisorError,
    UsageError,
    plain_words,
)
from entourage.hosts.parts import HostPart
from entourage.hosts.process import ProcessHandle
from entourage.hosts.resources import Ledger, MemoryLedger
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DomainState, Incoming, Machine
from entourage.hypervisors.qemu import binary, checks, definitions, nvram
from entourage.hypervisors.qemu.access import account_of, notes, take_back
from entourage.hypervisors.qemu.handle import Handle, after_end, end_machine
from entourage.hypervisors.qemu.incoming import QemuIncoming
from entourage.hypervisors.qemu.launch import bring_up
from entourage.hypervisors.qemu.machine import QemuMachine
from entourage.hypervisors.qemu.paths import places
from entourage.hypervisors.qemu.qmp import Monitor, MonitorLostError
from entourage.hypervisors.qemu.record import (
    Entry,
    Running,
    disown,
    entries,
    entry_of,
    read_running,
    write_owned,
)
from entourage.hypervisors.qemu.resolve import resolve
from entourage.hypervisors.values import Definition
from entourage.settings.model import Settings
from entourage.steps import Refusal

_INFO_PATIENCE = 2.0


class QemuHypervisor:
    """This host's QEMU domains: those that run here, and those that this host owns."""

    name = "qemu"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def domains(self) -> Sequence[DomainState]:
        """All domains of this host: running, on their way in, and shut off."""
        return await asyncio.gather(*map(_state, entries(self._settings)))

    async def find(self, name: str) -> Domain:
        """The running (or last known) configuration; raises UsageError where there is none."""
        return self._entry(name).domain

    async def machine(self, name: str) -> Machine:
        """Open a running domain; raises UsageError where there is none, or it does not run."""
        entry = self._entry(name)
        if entry.running is None or not entry.alive:
            raise _not_running(name)
        try:
            return QemuMachine(await Handle.open(entry.running, entry.places))
        except GoneError as error:
            raise _not_running(name) from error

    async def reattach_machine(self, domain: Domain) -> Machine:
        """What is left here of a domain whose migration another process began."""
        where = places(self._settings, str(domain.uuid), domain.name)
        running = read_running(where)
        if running is None:
            running = Running(domain=domain, pid=0, began=0, marker="")
        try:
            return QemuMachine(await Handle.open(running, where))
        except (GoneError, MonitorLostError):
            return QemuMachine(Handle.of_ended(running, where))

    def incoming(self, domain: Domain, ledger: Ledger) -> Incoming:
        """A machine to be built here."""
        where = places(self._settings, str(domain.uuid), domain.name)
        return QemuIncoming(domain, where, ledger, settings=self._settings)

    async def test_incoming(
        self, domain: Domain, host: str, facts: Mapping[str, str]
    ) -> Sequence[Refusal]:
        """What speaks against building this domain here."""
        return await checks.test_incoming(domain, host, facts, self._settings)

    async def host_parts(self, facts: Mapping[str, str]) -> Sequence[HostPart]:  # noqa: ARG002 - see base
        """None: the domain says it all."""
        return ()

    async def start(self, domain: Domain) -> None:
        """Start a domain here from what a user wrote.

        Raises:
            UsageError: What it names is not here, or cannot be meant.
            DomainBusy: It runs already.
            HypervisorError: QEMU, swtpm or the kernel refused; nothing is left of it.
        """
        known = entry_of(self._settings, domain.name)
        if known is not None and known.alive:
            raise DomainBusy(f"{domain.name} runs here already")
        account = account_of(self._settings.qemu)
        checks.check_start(domain)
        resolved = resolve(
            domain,
            uuid=None if known is None else known.domain.uuid,
            machine_types=await binary.machine_types(),
            kvm=domain.accel != "tcg" and await binary.kvm_works(self._settings),
        )
        for entry in entries(self._settings):
            if entry.domain.uuid == resolved.uuid and entry.domain.name != resolved.name:
                raise UsageError(
                    f"the domain {entry.domain.name} has the same uuid", remedy="choose another"
                )
        where = places(self._settings, str(resolved.uuid), resolved.name)
        await checks.check_access(resolved, where, account)
        ledger = MemoryLedger()
        try:
            await in_thread(nvram.make_variables, domain, ledger)
            up = await bring_up(resolved, where, ledger, incoming=False, account=account)
            try:
                await in_thread(write_owned, where, up.running.domain)
                await up.monitor.execute("cont")
            finally:
                await up.monitor.close()
                for process in (up.process, *up.helpers):
                    process.close()
        except BaseException as error:
            if known is None:
                await asyncio.shield(in_thread(disown, where))
            await asyncio.shield(ledger.undo())
            if isinstance(error, OSError):
                raise HypervisorError(
                    f"{domain.name} cannot be started: {error}",
                    remedy="check paths.run, paths.state and paths.log, and run as root",
                ) from error
            raise

    async def stop(self, name: str, *, force: bool, patience: float) -> None:
        """Shut a domain down (ACPI), or end it at once with ``force``.

        Raises:
            UsageError: There is none, or it does not run.
            HypervisorError: The guest did not shut down in time.
        """
        entry = self._entry(name)
        running = entry.running
        process = None if running is None else ProcessHandle.open(running.pid, running.began)
        if running is None or process is None:
            try:
                await in_thread(take_back, entry.places, moved=False)
            except OSError as error:
                raise HypervisorError(
                    f"{name} does not run, and its files are not given back: {plain_words(error)}",
                    remedy=f"{entry.places.owners} says whose they were",
                ) from error
            raise _not_running(name)
        monitor = Monitor.lost()
        try:
            try:
                async with asyncio.timeout(patience):
                    monitor = await Monitor.connect(entry.places.qmp)
                    if not force:
                        await monitor.execute("system_powerdown")
                        await process.ended()
            except TimeoutError as error:
                if not force:
                    raise HypervisorError(
                        f"{name} has not shut down within {patience:g} s",
                        remedy="its guest may ignore the power button; --force ends it at once",
                    ) from error
            except MonitorLostError:
                pass  # it has just ended, or hangs; the rest is the same
            if force:
                await end_machine(monitor, process, running, entry.places)
            else:
                await process.ended()
                await after_end(running, entry.places)
        finally:
            await monitor.close()
            process.close()

    async def definition(self, name: str) -> Definition:
        """A machine that is off; see ``HasDefinitions``."""
        return await definitions.definition(self._entry(name))

    async def define(self, definition: Definition) -> None:
        """Own one that is off; see ``HasDefinitions``."""
        await definitions.define(self._settings, definition)

    async def undefine(self, definition: Definition) -> None:
        """Own it no more; see ``HasDefinitions``."""
        await definitions.undefine(self._settings, definition)

    def notes(self, domain: Domain) -> Sequence[str]:
        """What whoever starts this domain here should know of how it runs."""
        return [*notes(self._settings.qemu), *nvram.notes(domain)]

    def _entry(self, name: str) -> Entry:
        entry = entry_of(self._settings, name)
        if entry is None:
            raise UsageError(
                f"there is no domain {name!r} on this host",
                remedy="entourage list shows what there is",
            )
        return entry


def _not_running(name: str) -> UsageError:
    return UsageError(f"{name} does not run", remedy="entourage start starts it")


async def _state(entry: Entry) -> DomainState:
    domain = entry.domain
    state, pid = "shut off", None
    if entry.running is not None and entry.alive:
        pid = entry.running.pid
        state = await _ask_state(entry)
        if entry.running.incoming and state in {"inmigrate", "paused", "prelaunch"}:
            state = "incoming"
    return DomainState(
        name=domain.name,
        uuid=str(domain.uuid),
        state=state,
        pid=pid,
        memory=domain.memory,
        vcpus=domain.vcpus,
        console=str(entry.places.console) if pid is not None else "",
    )


async def _ask_state(entry: Entry) -> str:
    """What QEMU says; where it is too busy to say anything, that it runs is known all the same."""
    monitor = None
    try:
        async with asyncio.timeout(_INFO_PATIENCE):
            monitor = await Monitor.connect(entry.places.info)
            return await monitor.status()
    except TimeoutError:
        return "not answering"
    except EntourageError:
        return "shut off" if not entry.alive else "not answering"
    finally:
        if monitor is not None:
            await monitor.close()

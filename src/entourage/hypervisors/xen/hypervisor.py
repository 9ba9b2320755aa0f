"""This host's Xen domains."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from entourage.domain import Domain
from entourage.errors import HypervisorError, UsageError
from entourage.hosts.parts import HostPart
from entourage.hosts.resources import Ledger
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DomainState, Incoming, Machine
from entourage.hypervisors.side import read_side, with_side
from entourage.hypervisors.xen import checks
from entourage.hypervisors.xen.configuration import Entry, entries, read_domain
from entourage.hypervisors.xen.constants import INCOMING, NAME
from entourage.hypervisors.xen.handle import Handle
from entourage.hypervisors.xen.header import parsed
from entourage.hypervisors.xen.hostparts import host_parts
from entourage.hypervisors.xen.incoming import XenIncoming
from entourage.hypervisors.xen.libxl import life
from entourage.hypervisors.xen.machine import XenMachine
from entourage.hypervisors.xen.xenstore import RELEASED, XenStore
from entourage.hypervisors.xen.xl import xl
from entourage.settings.model import Settings
from entourage.steps import Refusal


class XenHypervisor:
    """The domains of this dom0.

    Args:
        settings: This host's.
    """

    name = NAME

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def domains(self) -> Sequence[DomainState]:
        """All domains that xl knows, but dom0."""
        found: list[DomainState] = []
        for entry in await self._entries():
            now = life(entry.domid)
            if now is None:  # it has gone meanwhile
                continue
            state = "incoming" if entry.name.endswith(INCOMING) else now.state
            found.append(
                DomainState(
                    name=entry.name,
                    uuid=entry.uuid,
                    state=state,
                    memory=entry.memory,
                    vcpus=entry.vcpus,
                )
            )
        return found

    async def find(self, name: str) -> Domain:
        """The running configuration; raises UsageError where there is none."""
        return self._read(await self._named(name))

    async def machine(self, name: str) -> Machine:
        """Open a running domain; raises UsageError where there is none, or it does not run."""
        entry = await self._named(name)
        now = life(entry.domid)
        if now is None or now.ended:
            raise UsageError(f"{name} does not run", remedy="`xl create` starts it")
        return await self._machine(entry, self._read(entry))

    async def reattach_machine(self, domain: Domain) -> Machine:
        """What is left here of a domain whose migration another process began."""
        for entry in await self._entries():
            if entry.uuid == domain.uuid:
                return await self._machine(entry, domain)
        store = await XenStore.open()
        return self._opened(Handle(store, None, domain, {}, self._log(domain)))

    async def _machine(self, entry: Entry, domain: Domain) -> XenMachine:
        store = await XenStore.open()
        return self._opened(Handle(store, entry.domid, domain, entry.config, self._log(domain)))

    def _opened(self, handle: Handle) -> XenMachine:
        return XenMachine(handle, self._settings)

    def _log(self, domain: Domain) -> Path:
        return Path(self._settings.paths.log, f"{domain.name}.log")

    def incoming(self, domain: Domain, ledger: Ledger) -> Incoming:
        """A machine to be built here."""
        return XenIncoming(self._settings, domain, ledger)

    async def test_incoming(
        self, domain: Domain, host: str, facts: Mapping[str, str]
    ) -> Sequence[Refusal]:
        """What speaks against building this domain here."""
        return await checks.test_incoming(domain, host, facts, self._settings.paths.run)

    async def host_parts(self, facts: Mapping[str, str]) -> Sequence[HostPart]:
        """What its configuration names, as the source has it; what xl is given is asked again."""
        if (text := facts.get("config")) is None:
            return ()

        def found() -> list[HostPart]:
            config = parsed(text)
            for taken_out in ("pcidevs", "usbdevs"):  # before xl sends it
                config.pop(taken_out, None)
            return host_parts(config)

        return await in_thread(found)

    async def start(self, domain: Domain) -> None:
        """Not here: only its user has the file that xl starts a domain from.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"xl keeps no definition of {domain.name}", remedy="`xl create FILE` starts it"
        )

    async def stop(self, name: str, *, force: bool, patience: float) -> None:
        """Shut a domain down, or end it at once with ``force``.

        Raises:
            UsageError: There is none.
            HypervisorError: The guest did not shut down in time.
        """
        domid = (await self._named(name)).domid
        await xl("destroy" if force else "shutdown", str(domid))
        store = await XenStore.open()
        try:
            released = await store.watch(RELEASED)
            async with asyncio.timeout(patience):
                while (now := life(domid)) is not None and not now.ended:
                    await released.wait()
                    released.clear()
        except TimeoutError as error:
            raise HypervisorError(
                f"{name} has not shut down within {patience:g} s",
                remedy="its guest may ignore the request; --force ends it at once",
            ) from error
        finally:
            await store.close()

    async def _entries(self) -> list[Entry]:
        return entries(await xl("list", "-l"))

    async def _named(self, name: str) -> Entry:
        for entry in await self._entries():
            if entry.name == name:
                return entry
        raise UsageError(
            f"there is no domain {name!r} on this host", remedy="`xl list` shows what there is"
        )

    def _read(self, entry: Entry) -> Domain:
        return with_side(read_domain(entry), read_side(entry.name, ""))

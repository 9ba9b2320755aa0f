"""A save as a hypervisor: it has one domain, or is to take one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from entourage.domain import Domain
from entourage.errors import UsageError, plain_words, what_to_do
from entourage.hosts.parts import HostPart
from entourage.hosts.proxy_agent import own_settings, proxy_settings
from entourage.hosts.resources import Ledger
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DomainState, Incoming, Machine
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.another import AnotherMachine, AnotherWrittenMachine, renamed
from entourage.hypervisors.saved.descriptor import Identity, another_name, save_name
from entourage.hypervisors.saved.incoming import SavingIncoming
from entourage.hypervisors.saved.machine import SavedMachine
from entourage.hypervisors.saved.place import Place
from entourage.hypervisors.saved.storage import Given, Result, Storage, Unanswered
from entourage.hypervisors.saved.written import SentMachine, WrittenMachine
from entourage.journal.journal import Journal
from entourage.settings.model import Settings
from entourage.settings.units import format_size
from entourage.steps import Refusal

_OVERHEAD = 32 << 20  # what a stream has beside memory: devices, page headers, a TPM's state
_LONGEST = 200  # of a path, as it is told over the link


class SavedHypervisor:
    """The save in a directory.

    Args:
        settings: This host's.
        directory: Where it is, or is to be.
        another: The other machine that is made of it; None: it is restored itself.
    """

    def __init__(self, settings: Settings, directory: str, another: Identity | None = None) -> None:
        self.name = another_name(directory, another) if another else save_name(directory)
        self._another = another
        self._settings = own_settings(settings)
        self._directory = Path(directory)
        self._facts: dict[str, str] = {}

    async def domains(self) -> Sequence[DomainState]:
        """None that is to be listed: whoever saved it knows where."""
        return ()

    async def find(self, name: str) -> Domain:
        """The saved configuration; raises UsageError where there is none of that name."""
        domain = (await self._manifest(name)).domain
        return renamed(domain, self._another) if self._another else domain

    async def machine(self, name: str) -> Machine:
        """The saved machine; raises UsageError where there is none of that name."""
        return await self._machine(await self._manifest(name))

    async def reattach_machine(self, domain: Domain) -> Machine:
        """The saved machine, whose restoring another process began.

        Its user may have removed it since: then nothing is left of it to be restored.
        """
        if not await self._ask(os.path.lexists, self._directory):
            # Whether its storage is mounted, is seen before anything is made of that.
            return await self._machine(manifests.removed(domain))  # already as the other one
        return await self._machine(await self._manifest(domain.name))

    async def _ask(self, work: Callable[[*Given], Result], *args: *Given) -> Result:
        """Look at the save; raises HypervisorError where its storage does not answer."""
        return await Storage(self._directory, self._another.name if self._another else "").do(
            work, *args
        )

    async def _manifest(self, name: str) -> manifests.Manifest:
        manifest = await self._ask(manifests.read_manifest, self._directory)
        saved = self._another.name if self._another else manifest.domain.name
        if saved != name:
            raise UsageError(f"{self._directory} is a save of {saved}, not of {name}")
        return manifest

    async def _machine(self, manifest: manifests.Manifest) -> SavedMachine:
        holder = await in_thread(holder_of, self._settings)
        place = Place(self._directory, manifest.domain.uuid, Path(self._settings.paths.state))
        if self._another:
            other = AnotherWrittenMachine if manifest.is_written else AnotherMachine
            machine = other(self._directory, manifest, holder, place)
            machine.become(self._another)
            return machine
        kind = SentMachine if manifest.sent else SavedMachine
        if manifest.is_written:
            kind = WrittenMachine
        return kind(self._directory, manifest, holder, place)

    def incoming(self, domain: Domain, ledger: Ledger) -> Incoming:
        """A machine to be saved."""
        state = Path(self._settings.paths.state)
        return SavingIncoming(domain, self._directory, ledger, self._facts, state)

    async def test_incoming(
        self, domain: Domain, host: str, facts: Mapping[str, str]
    ) -> Sequence[Refusal]:
        """What speaks against saving this domain here."""
        self._facts.update(facts)
        try:
            problems = await self._ask(lambda: [*self._problems(domain)])
            return [Refusal("domain", host, *problem) for problem in problems]
        except Unanswered as error:
            return [Refusal("domain", host, error.message, error.remedy)]
        except OSError as error:
            return [Refusal("domain", host, plain_words(error), what_to_do(error))]

    def _problems(self, domain: Domain) -> Iterator[tuple[str, str]]:
        directory, parent = self._directory, self._directory.parent
        if len(str(directory)) > _LONGEST:
            yield f"the path has more than {_LONGEST} characters", "choose a shorter one"
            return
        if not parent.is_dir():
            yield f"there is no directory {parent}", "make it"
            return
        if (real := parent.resolve()) != parent:
            yield f"{parent} is a link to {real}", f"name it so: {real / directory.name}"
        if directory.name.endswith(manifests.PARTIAL):
            yield f"{manifests.PARTIAL} is what a save under way is called", "choose another name"
        if directory.is_symlink() or not directory.is_dir():
            if os.path.lexists(directory):
                yield f"{directory} is there already", "choose another name, or remove it"
        elif any(directory.iterdir()):
            yield f"{directory} is there already", "choose another name, or remove it"
        if directory.is_mount():
            yield f"{directory} is a mount point", "choose a directory in it"
        try:
            manifests.check_owners(parent)
        except UsageError as error:
            yield error.message, error.remedy
        if (partial := manifests.partial(directory, domain)).exists():
            yield f"{partial} is left of another save", "`entourage recover`; else remove it"
        if not os.access(parent, os.W_OK | os.X_OK):
            yield f"{parent} cannot be written to", "choose another one"
        space = os.statvfs(parent)
        free, need = space.f_bavail * space.f_frsize, domain.memory + _OVERHEAD
        if free < need:
            reason = (
                f"no room in {parent}: {format_size(need)} may be needed, {format_size(free)} free"
            )
            yield reason, "make room, or choose another directory"

    async def host_parts(self, facts: Mapping[str, str]) -> Sequence[HostPart]:  # noqa: ARG002 - see base
        """None: nothing of the host is used."""
        return ()

    async def start(self, domain: Domain) -> None:  # noqa: ARG002 - see base
        """A save is restored."""
        raise UsageError(
            "a saved machine is restored", remedy=f"entourage restore {self._directory}"
        )

    async def stop(self, name: str, *, force: bool, patience: float) -> None:  # noqa: ARG002
        """It does not run."""
        raise UsageError(f"{name} is saved in {self._directory}, and does not run")


def holder_of(settings: Settings) -> str:
    """What this host's claims are known by; empty where it has never saved or restored. Blocks."""
    path = Path(proxy_settings(settings).paths.state, "journal.db")
    if not path.exists():
        return ""
    with Journal.open(path, read_only=True) as journal:
        return journal.uuid

"""A saved machine: the source's half of its restoring.

Its guest stands still from beginning to end, and nothing resumes it by itself. What gives the right
to run away is the claim: it is on the save's disk before GO is said, and nobody else restores it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import msgspec

from entourage.domain import Block, Domain, Tpm
from entourage.errors import HypervisorError, UsageError, plain_words, what_to_do
from entourage.handover.values import Guest
from entourage.hosts.filters import Filter, Pipeline
from entourage.hosts.flow import Flow, from_file
from entourage.hosts.local import connected_here
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DataPlane, MemoryProgress, Plan, Ticket
from entourage.hypervisors.reach import check_local
from entourage.hypervisors.saved import claim
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.copies import Belonged, CopiesOut, in_the_save
from entourage.hypervisors.saved.damage import Damage, refused, told
from entourage.hypervisors.saved.lineage import lineage
from entourage.hypervisors.saved.manifest import MEMORY, Manifest
from entourage.hypervisors.saved.place import Place
from entourage.hypervisors.saved.seals import changed
from entourage.hypervisors.saved.storage import Storage
from entourage.hypervisors.seams import MachineSeams, NoGuest
from entourage.hypervisors.values import TpmFacts
from entourage.steps import Refusal

_NO_PLAN = Plan(msgspec.msgpack.encode({}))
_NOTHING: Mapping[str, str] = MappingProxyType({})


class SavedTpm:
    """An emulated TPM's state is in the save's memory.

    Args:
        facts: What its emulator could do.
    """

    stays = True

    def __init__(self, facts: TpmFacts | None) -> None:
        self._facts = facts or TpmFacts()

    async def facts(self) -> TpmFacts:
        """What the emulator that it was saved in could do."""
        return self._facts

    async def erase(self, tpm: Tpm) -> None:
        """It stays in the save, which nobody restores any more."""


class SavedMachine(MachineSeams):
    """A machine in a directory.

    Args:
        directory: The save's.
        manifest: What it consists of.
        holder: What this host's claims are known by.
        place: Where it is, as this host notes it.
    """

    non_live = True

    def __init__(self, directory: Path, manifest: Manifest, holder: str, place: Place) -> None:
        self._place = place
        self._directory = directory
        self._manifest = manifest
        self._holder = holder
        self._domain = in_the_save(manifest.domain, directory, manifest.copies)
        self._copies = CopiesOut(manifest.copies)
        self._plane: DataPlane | None = None
        self._flow: Flow | None = None
        self._pipeline: Pipeline | None = None
        self._sends = False
        self._storage = Storage(directory, manifest.domain.name)
        self._damage = Damage(directory, manifest, self._domain, self._storage)

    @property
    def domain(self) -> Domain:
        """The configuration with which it was saved; disks that were copied are in the save."""
        return self._domain

    @property
    def guest_agent(self) -> NoGuest:
        """Its guest lies in the save."""
        return NoGuest()

    @property
    def generation(self) -> int:
        """The domain's, when it was saved."""
        return self._manifest.generation

    @property
    def was_running(self) -> bool:
        """False where its user had paused the guest before it was saved."""
        return self._manifest.was_running

    @property
    def mirroring(self) -> CopiesOut:
        """Disks that were copied are copied out of the save."""
        return self._copies

    def format_of(self, disk: Block) -> str:
        """The format in which a disk lies in the save: of one's changes, an overlay's."""
        return self._copies.format_of(disk)

    def belonged(self, label: str) -> Belonged:
        """Whose the image of a disk was that was copied into the save."""
        found = [copy for copy in self._manifest.copies if copy.device == label]
        return Belonged(found[0].mode, found[0].owner, found[0].group) if found else Belonged()

    @property
    def tpm(self) -> SavedTpm:
        """Its state is in the stream."""
        return SavedTpm(self._manifest.tpm)

    async def reattach(self, *, was_running: bool) -> Guest:  # noqa: ARG002 - it never ran
        """It stands still, as ever."""
        return Guest.STOPPED

    async def close(self) -> None:
        """Let go of the stream. Once: what hangs is told by whoever asks first."""
        await self._damage.end()
        flow, self._flow = self._flow, None
        if flow is not None:
            await flow.end()
        if self._pipeline is not None:
            await self._pipeline.end()
            self._pipeline = None

    async def facts(self) -> Mapping[str, str]:
        """What the hypervisor that it was saved in said of itself."""
        return self._manifest.facts

    async def blockers(self) -> Sequence[Refusal]:
        """A claim, a disk that has changed."""
        return await self._storage.do(objections, self._directory, self._manifest, self._holder)

    def begin_to_examine(self) -> None:
        """Read all of it for its digests. Its guest waits for that: it stands back for nobody."""
        self._damage.begin(nice=0)

    async def examine(self) -> Sequence[Refusal]:
        """Files whose digests are not those that were saved; they are read once."""
        return await self._damage.found()

    async def at_fault(self) -> HypervisorError | None:
        """What cannot be restored is perhaps not what was saved."""
        sends = self._sends or self._copies.begun
        return await self._damage.at_fault() if sends else None

    async def died(self) -> str:
        """It does not die."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def arm(
        self,
        plane: DataPlane,
        *,
        downtime_limit: float | None = None,  # noqa: ARG002 - the guest stands still
        throttle: bool = False,  # noqa: ARG002
        lock: int | None = None,  # noqa: ARG002 - nothing resumes it
        budget: float | None = None,  # noqa: ARG002
        offers: Mapping[str, str] = _NOTHING,  # noqa: ARG002
    ) -> None:
        """Begin to read all of it for its digests, unless TEST has."""
        self._plane = self._copies.plane = plane
        self.begin_to_examine()

    @property
    def in_the_clear(self) -> str:
        """It leaves no host."""
        return ""

    async def plan(self, target: Domain) -> Plan:  # noqa: ARG002 - all is in the domain
        """All that the target needs is in the domain."""
        return _NO_PLAN

    async def start(self, ticket: Ticket, *, live: bool) -> None:  # noqa: ARG002 - it stands still
        """Begin to send memory."""
        self._sends = True
        local = self._plane.local if self._plane else None
        if local is None:
            raise HypervisorError("a save is restored by a process of the host that it is on")
        check_local(local, ticket.uri)
        async with connected_here(local.socket) as connection:
            if local.filters:
                self._pipeline = await self._unfiltered(local.filters, connection.fileno())
                return
            # The flow's own: the context closes this one.
            self._flow = from_file(self._directory / MEMORY, connection.dup())

    async def _unfiltered(self, filters: Sequence[Filter], target: int) -> Pipeline:
        """Have memory go through the programs that it went through, the last of them first."""
        handle = await in_thread(os.open, self._directory / MEMORY, os.O_RDONLY | os.O_CLOEXEC)
        try:
            commands = [one.back() for one in reversed(filters)]
            return await Pipeline.begin(commands, handle, target)
        finally:
            os.close(handle)

    async def progress(self) -> MemoryProgress:
        """How much was sent."""
        total = self._manifest.memory.size
        done = self._flow.done if self._flow else 0
        return MemoryProgress(
            remaining=total - done, total=total, dirty_rate=0.0, rate=0.0, iteration=1, sent=done
        )

    async def tune(self, *, downtime_limit: float, throttle: bool) -> None:
        """The guest stands still."""

    async def stopped(self) -> int:
        """It stands still."""
        return time.monotonic_ns()

    async def pre_switchover(self) -> str:
        """No disk is to be flushed."""
        return ""

    async def continue_switchover(self) -> None:
        """All of it is on its way."""

    async def landed(self) -> bytes:
        """Wait until all was sent, and was what was saved."""
        sending = asyncio.ensure_future(self._sent())
        try:
            # What is damaged may well hold up who is to take it.
            looking = self._damage.begin()
            await asyncio.wait({sending, looking}, return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                await self._damage.check()
            await sending
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.wait({sending})
        await self._damage.check()
        return b""

    async def _sent(self) -> None:
        """Wait until all was sent; raises HypervisorError where it cannot be."""
        try:
            if self._pipeline is not None:
                await self._pipeline.finished()
            elif self._flow is not None:
                await self._flow.finished()
        except OSError as error:
            raise HypervisorError(
                f"memory cannot be sent: {plain_words(error)}", remedy=what_to_do(error)
            ) from error

    async def disarm_deadman(self) -> None:
        """Claim the save: from here on nobody else restores it, until this is given up.

        What TEST has seen of it is looked at again, for now nobody else may let its guest run.

        Raises:
            HypervisorError: Somebody else has claimed it, or it is not what it was at TEST.
        """
        try:
            await self._storage.do(self._place.note, self.generation)
        except OSError as error:
            raise HypervisorError(plain_words(error), remedy=what_to_do(error)) from error
        await self._storage.do(claim.take, self._directory, self._holder)
        await self._look_again()

    async def _look_again(self) -> None:
        await self._storage.do(self._check_again)

    def _check_again(self) -> None:
        try:
            now = manifests.read_manifest(self._directory)
        except UsageError as error:
            raise HypervisorError(error.message, remedy=error.remedy) from error
        if now != self._manifest:
            raise HypervisorError(
                f"{self._directory} is another save than it was a moment ago",
                remedy="`entourage saved` shows what it is",
            )
        for refusal in _outdated(self._directory, self._manifest):
            raise told(refusal)

    async def halt(self) -> None:
        """It stands still."""

    async def release(self) -> None:
        """The guest runs: nobody restores the save any more; a checkpoint again, if asked to."""
        await self.close()
        settle = claim.give_up if self._manifest.checkpoint else claim.confirm
        await self._storage.do(self._settle, settle)

    async def abort(self) -> None:
        """The guest was never let run: others may restore the save."""
        await self.close()
        await self._storage.do(self._settle, claim.give_up)

    def _settle(self, how: Callable[[Path, str], None]) -> None:
        """Do something with the claim, unless its user has removed the save meanwhile."""
        self._place.check()
        try:
            if os.path.lexists(self._directory):
                how(self._directory, self._holder)
        except OSError as error:
            raise HypervisorError(plain_words(error), remedy=what_to_do(error)) from error
        self._place.forget()


def objections(directory: Path, manifest: Manifest, holder: str) -> list[Refusal]:
    """What speaks against restoring a save here, but for what takes long to see. Blocks.

    Args:
        directory: The save's.
        manifest: What it consists of.
        holder: What this host's claims are known by.
    """
    host = socket.gethostname()
    found: list[Refusal] = []
    if problem := claim.objection(directory, holder):
        found.append(Refusal("domain", host, *problem))
    return found + _outdated(directory, manifest)


def _outdated(directory: Path, manifest: Manifest) -> list[Refusal]:
    """What has changed since, of its disks and of what it is built on. Blocks."""
    try:
        lineage(directory, manifest)
    except UsageError as error:
        return [refused(error), *broken_seals(manifest)]
    return broken_seals(manifest)


def broken_seals(manifest: Manifest) -> list[Refusal]:
    """Disks that stayed where they are, and have changed since. Blocks."""
    host = socket.gethostname()
    remedy = "put back what it was, if you have it; its guest would destroy what is there now"
    changes = ((seal.device, changed(seal)) for seal in manifest.disks)
    return [Refusal(device, host, what, remedy) for device, what in changes if what]

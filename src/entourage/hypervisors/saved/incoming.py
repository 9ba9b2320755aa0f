"""A machine that is being saved: the target's half of a migration into a directory.

What a host's hypervisor builds is here ``DIR.UUID.partial``, and what lets its guest run is the
rename to ``DIR``: from then on it can be restored. What can be on a file system that is not mounted
is never taken for what is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import errno
import os
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entourage import durable
from entourage.domain import Domain, Tpm
from entourage.errors import HypervisorError, InDoubt, UsageError, plain_words, what_to_do
from entourage.handover.values import Guest
from entourage.hosts.flow import Flow, end_checked, into_file
from entourage.hosts.local import listening_here
from entourage.hosts.resources import Ledger
from entourage.hosts.threads import in_thread
from entourage.hypervisors import swtpm
from entourage.hypervisors.base import DataPlane, Plan, Ticket
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.copies import CopiesIn
from entourage.hypervisors.saved.lineage import lineage
from entourage.hypervisors.saved.measuring import Measuring
from entourage.hypervisors.saved.place import Place
from entourage.hypervisors.saved.seals import sealed
from entourage.hypervisors.saved.storage import REMOVED_WITHIN, Storage, Unanswered
from entourage.hypervisors.saved.written import WrittenFile
from entourage.hypervisors.seams import DiskCopy, IncomingSeams
from entourage.hypervisors.values import KEEPS, KEEPS_LATE, LocalData, TpmFacts
from entourage.version import __version__

_GIVES_ROOM_WITHIN = 2.0  # seconds; the guest stands still


class SavedTpmArrival:
    """An emulated TPM's state is in QEMU's stream, and so in the save."""

    async def facts(self) -> TpmFacts:
        """What the emulator of this host can do: the one that it runs in."""
        return await swtpm.facts()

    async def sync(self, tpm: Tpm) -> None:
        """It was synced with memory."""


class SavingIncoming(IncomingSeams):
    """A domain that is being saved.

    Args:
        domain: The domain.
        directory: Where to; what is not whole yet is beside it.
        ledger: Takes the socket before it is made.
        facts: What ``Machine.facts`` has said at TEST.
        state: Where this host notes what it saves.
    """

    is_save = True

    def __init__(
        self,
        domain: Domain,
        directory: Path,
        ledger: Ledger,
        facts: Mapping[str, str],
        state: Path,
    ) -> None:
        self._domain = domain
        self._directory = directory
        self._partial = manifests.partial(directory, domain)
        self._place = Place(directory, domain.uuid, state)
        self._storage = Storage(directory, domain.name)
        self._ledger = ledger
        self._facts = facts
        self._local: LocalData | None = None
        self._copies = CopiesIn(self._partial, ledger)
        self._publishing: asyncio.Future[None] | None = None
        self._written: WrittenFile | None = None
        self._measuring: Measuring | None = None
        self._flow: asyncio.Future[Flow] | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._landing: asyncio.Task[Any] | None = None

    @property
    def takes(self) -> frozenset[DiskCopy]:
        """What a source mirrors; a medium that is only read stays where it is."""
        return frozenset({DiskCopy.MIRROR})

    @property
    def exports(self) -> CopiesIn:
        """Each disk has a server of its own."""
        return self._copies

    @property
    def publishing(self) -> SavingIncoming:
        """It is kept where its guest goes on."""
        return self

    @property
    def tpm(self) -> SavedTpmArrival:
        """Its state is in the stream."""
        return SavedTpmArrival()

    async def attach(self) -> Guest:
        """What another process has made of it: nothing whole, all of it, or the save itself."""
        await self.close()
        return await self._storage.do(self._seen)

    def _seen(self) -> Guest:
        """What is there; raises HypervisorError where that cannot be seen."""
        generation = self._place.check()
        if manifests.is_of(self._directory, self._domain, generation):
            return Guest.RUNNING
        whole = manifests.is_of(self._partial, self._domain, generation)
        return Guest.STOPPED if whole else Guest.DEAD

    async def offers(self) -> Mapping[str, str]:
        """That what a hypervisor says as it begins to send memory is kept with that."""
        return {KEEPS: KEEPS_LATE}

    async def networks(self) -> Mapping[str, str]:
        """None."""
        return {}

    async def build(self, domain: Domain, plane: DataPlane, plan: Plan) -> None:
        """Make the directory."""
        if plane.local is None:
            raise HypervisorError("a machine is saved by a process of the host that it runs on")
        self._written = WrittenFile(plan, self._partial / manifests.MEMORY)
        self._domain, self._local = domain, plane.local
        try:
            copies = bool(plane.local.copies)
            await self._storage.do(self._make, plane.local.generation, copies)
            self._copies.stands(plane.local)
            memory = self._partial / manifests.MEMORY
            self._measuring = Measuring(memory, self._written, far=plane.local.far)
        except OSError as error:
            raise HypervisorError(plain_words(error), remedy=what_to_do(error)) from error
        except UsageError as error:
            raise HypervisorError(error.message, remedy=error.remedy) from error

    def _make(self, generation: int, copies: bool) -> None:  # noqa: FBT001 - for a thread
        # No row of the ledger: undoing one would take what is not mounted for what is not there.
        self._place.note(generation)
        durable.make_directory(self._partial)
        if copies:
            durable.make_directory(self._partial / manifests.DISKS)
        manifests.check_owners(self._partial)

    async def listen(self) -> Ticket:
        """Wait for memory at the socket that the source has named."""
        path = self._needs_local().socket
        if self._measuring is not None:  # not before: copies of disks may take hours
            await self._measuring.begin()
        self._ledger.record("scratch", path=path)
        server = listening_here(Path(path))
        loop = asyncio.get_running_loop()
        flow: asyncio.Future[Flow] = loop.create_future()
        self._flow, written = flow, self._written

        async def accept() -> None:
            try:
                with server:
                    connection, _ = await loop.sock_accept(server)
                await in_thread(Path(path).unlink, missing_ok=True)
                if written is not None and not written.comes:
                    flow.set_result(written.flow(connection))
                else:
                    memory = self._partial / manifests.MEMORY
                    seen = self._measuring.written if self._measuring else None
                    flow.set_result(into_file(connection, memory, seen))
            except OSError as error:
                flow.set_exception(error)

        self._accepting = asyncio.create_task(accept())
        return Ticket(uri=f"unix:{path}", cookie=written.cookie if written else b"")

    async def landed(self) -> None:
        """Wait until memory is on the disk, then write down what the save consists of.

        QEMU ends its stream once it has written all of the disks: they are what they will be.
        """
        if self._flow is None:
            raise HypervisorError("nothing is being saved")
        self._landing = asyncio.current_task()
        try:
            try:
                await (await self._flow).finished()
            except OSError:
                if self._measuring is not None:  # it would hold what the hypervisor has removed
                    await self._measuring.end()
                raise
            if self._needs_local().far:
                await in_thread(end_checked, self._partial / manifests.MEMORY)
            if not self._needs_local().checkpoint:  # else its guest waits for this to go on
                await self._write_down()
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                await self._give_room()
            raise HypervisorError(
                f"memory cannot be saved: {plain_words(error)}", remedy=what_to_do(error)
            ) from error
        except UsageError as error:
            raise HypervisorError(error.message, remedy=error.remedy) from error
        finally:
            self._landing = None

    async def _give_room(self) -> None:
        """Take nothing of the storage any more: the guest goes on before this is undone.

        Its disks may be on the same one. What it cannot write there has QEMU stop it.
        """
        memory = self._partial / manifests.MEMORY
        with contextlib.suppress(OSError, HypervisorError):
            await self._storage.do(os.truncate, memory, 0, within=_GIVES_ROOM_WITHIN)

    async def _write_down(self) -> None:
        path = self._partial / manifests.MEMORY
        if self._written is not None:
            await self._written.said()
        # Its hypervisor has perhaps not: after a power cut there would be a save with a hole in it.
        synced = in_thread(durable.sync_file, path)
        measured = self._measuring.finish() if self._measuring else manifests.measured(path)
        memory, _ = await asyncio.gather(measured, synced)
        local = self._needs_local()
        kept = [disk for disk in self._domain.block if disk.id not in local.copies]
        stay = [seal for disk in kept for seal in await sealed(disk)] if local.sealed else []
        copies = await self._copies.written()
        has_tpm = any(tpm.type == "emulator" for tpm in self._domain.tpm)
        written = self._written
        sent = written is not None and written.is_sent
        manifest = manifests.Manifest(
            format=manifests.format_for(local.since, sent=sent),
            entourage=__version__,
            made=dt.datetime.now().astimezone().isoformat(timespec="seconds"),
            host=socket.gethostname(),
            generation=local.generation,
            was_running=not local.paused,
            domain=self._domain.with_paths(local.copies),
            facts=dict(self._facts),
            memory=memory,
            disks=tuple(stay),
            copies=copies,
            filters=tuple(one.name for one in local.filters),
            checkpoint=local.checkpoint,
            mark=local.mark if copies else "",
            since=local.since,
            tpm=await swtpm.facts() if has_tpm else None,
            hypervisor=written.hypervisor if written else "",
            kept=written.kept if written else b"",
            sent=sent,
        )
        await self._storage.do(manifests.write_manifest, self._partial, manifest)
        # What cannot be read again would be lost.
        await in_thread(manifests.read_manifest, self._partial)
        if local.since is not None:
            earlier = Storage(Path(local.since.directory), self._domain.name)
            await earlier.do(lineage, self._partial, manifest)

    async def publish(self) -> None:
        """Have the save of a guest that goes on whole, under its name; that cannot be undone.

        Raises:
            Unanswered: Whether it is, is not known.
            HypervisorError: It is not; what was made of it is still to be removed.
        """
        if not self._needs_local().checkpoint or self._landing is not None:
            raise HypervisorError("it is no checkpoint, or its memory is not there yet")
        try:
            await self._write_down()
            # Whoever gives it up meanwhile waits until it is known which of both it is, or until
            # the storage is given up.
            self._publishing = asyncio.ensure_future(self._named())
            await asyncio.shield(self._publishing)
        except OSError as error:
            raise HypervisorError(
                f"it cannot be written down: {plain_words(error)}", remedy=what_to_do(error)
            ) from error
        except UsageError as error:
            raise HypervisorError(error.message, remedy=error.remedy) from error

    async def _named(self) -> None:
        """Give it its name; raises Unanswered where whether it has got it is not known."""
        try:
            await self._storage.do(self._publish)
        except Unanswered as error:
            raise Unanswered(
                f"{error.message}: whether the checkpoint stands is not known",
                remedy=f"{error.remedy}; `entourage saved {self._directory}` shows it then",
            ) from error

    def accept_cookie(self, cookie: bytes) -> None:
        """What is needed to restore it, where it was not known before; QEMU's stream says all."""
        if self._written is not None:
            self._written.say(cookie)

    async def died(self) -> str:
        """Nothing dies: what cannot be written shows in ``landed``."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def run(self, *, paused: bool) -> int:  # noqa: ARG002 - it is in the manifest
        """Give the directory its name: the machine can be restored from here on.

        Raises:
            HypervisorError: It certainly has not got it.
            InDoubt: Nobody knows: a network's file system may have done what it says it has not.
        """
        try:
            await self._storage.do(self._publish)
        except Unanswered as error:
            raise InDoubt(
                f"whether {self._directory} stands is not known: {error.message}",
                remedy=error.remedy,
            ) from error
        except OSError as error:
            if await self._never_published():
                raise HypervisorError(plain_words(error), remedy=what_to_do(error)) from error
            raise InDoubt(
                f"whether {self._directory} stands is not known: {plain_words(error)}",
                remedy=f"mend that, then `entourage recover {self._domain.name}`",
            ) from error
        return time.monotonic_ns()

    async def _never_published(self) -> bool:
        try:
            return await self._storage.do(self._seen) is Guest.STOPPED
        except HypervisorError:
            return False

    def _publish(self) -> None:
        generation = self._place.check()
        # Another process may have done it, and not got to the sync.
        if not manifests.is_of(self._directory, self._domain, generation):
            # Over an empty directory, and over nothing else.
            durable.rename(self._partial, self._directory)
        else:
            durable.sync_directory(self._directory.parent)

    async def halt(self) -> None:
        """Take the name back: it is a save without a right to be restored."""
        try:
            await self._storage.do(durable.rename, self._directory, self._partial)
        except OSError as error:
            raise HypervisorError(plain_words(error), remedy=what_to_do(error)) from error

    async def persist_definition(self) -> None:
        """The save has it."""

    async def finish_arrival(self) -> None:
        """Nothing is left of it but the save."""
        await self.close()
        await self._storage.do(self._place.forget)

    async def kill(self) -> None:
        """Remove what was made; it was never whole, or nobody may restore it."""
        await self.close()
        await self._storage.do(self._remove, within=REMOVED_WITHIN)

    def _remove(self) -> None:
        self._place.check()
        with contextlib.suppress(OSError):  # at once, whoever has it open still
            os.truncate(self._partial / manifests.MEMORY, 0)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._partial)
        self._place.forget()

    async def close(self) -> None:
        """Let go of the stream."""
        if self._landing is not None:
            self._landing.cancel()
            await asyncio.gather(self._landing, return_exceptions=True)
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._publishing is not None:
            await asyncio.gather(self._publishing, return_exceptions=True)
        await self._copies.close()
        if self._measuring is not None:
            await self._measuring.end()
        flow = self._flow
        if flow is not None and flow.done() and not flow.cancelled() and not flow.exception():
            await flow.result().end()
        self._flow = self._accepting = None

    def _needs_local(self) -> LocalData:
        if self._local is None:
            raise HypervisorError("nothing is being saved")
        return self._local

"""A libvirt domain that is being restored here: the target's half, of which a save is the source.

    build    write down what is being done: another process must know what it may end
    exports  disks are copied out of the save, before libvirt opens them
    landed   libvirt has read memory's file, or has taken what it had sent (``reception.py``); the
             guest stands still, all its devices there
    run      note that it may have run, then resume
    kill     end it; only what nobody has let run

A definition that is here stays as it is, as with ``virsh restore``; where there is none, the one
that the domain was saved with is written down, once it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from entourage.domain import Domain
from entourage.errors import HypervisorError, InDoubt, plain_words
from entourage.handover.values import Guest
from entourage.hosts.local import listening_here
from entourage.hosts.parts import HostPart
from entourage.hosts.resources import Ledger
from entourage.hosts.threads import in_thread
from entourage.hypervisors import swtpm
from entourage.hypervisors.base import DataPlane, DiskCopy, Plan, Ticket
from entourage.hypervisors.libvirt import guestclock, handed, volumes
from entourage.hypervisors.libvirt.activation import take_images
from entourage.hypervisors.libvirt.arrival import sync_definitions
from entourage.hypervisors.libvirt.arrival_state import check_never_ran
from entourage.hypervisors.libvirt.connection import LostError, RefusedError, ask, call
from entourage.hypervisors.libvirt.constants import (
    OFF,
    PAUSED_BY_MIGRATION,
    SAVE_PAUSED,
    Parameter,
    State,
)
from entourage.hypervisors.libvirt.errors import SEE_LOGS, plain
from entourage.hypervisors.libvirt.events import Feed
from entourage.hypervisors.libvirt.image_copy import ImageCopy
from entourage.hypervisors.libvirt.incoming import LibvirtIncoming
from entourage.hypervisors.libvirt.made_files import remove_made, remove_unowned
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.libvirt.process import check_ended
from entourage.hypervisors.libvirt.reception import Reception
from entourage.hypervisors.libvirt.restored_disks import RestoredDisks
from entourage.hypervisors.libvirt.restored_plan import adapted, missing, read_plan
from entourage.hypervisors.libvirt.restoring_notes import Restoring, restoring_notes
from entourage.hypervisors.libvirt.tpm import state_of, states_of
from entourage.hypervisors.values import LocalData

_GONE = frozenset({*OFF, State.NONE})
_BEGINS_WITHIN = 1.0  # seconds for a libvirtd that was asked to restore to show the domain
_LOOK_AGAIN = 0.05
_SETTLES_WITHIN = 30.0  # seconds for a libvirtd that went away to come back
_BACK_WITHIN = 600.0  # seconds for a libvirtd that went away in the middle of GO


class RestoringIncoming(LibvirtIncoming):
    """A domain that is being restored on this host.

    Args:
        uri: Of this host's libvirtd.
        domain: The domain.
        file: What is known of the restore is written there.
        ledger: Takes what serves the disks that are copied, before it is made.
    """

    def __init__(self, uri: str, domain: Domain, file: Path, ledger: Ledger) -> None:
        super().__init__(uri, domain)
        self._restoring_file = restoring_notes(file)
        self._exports = RestoredDisks(ledger)
        self._memory = ""
        self._copy: ImageCopy | None = None
        self._ledger = ledger
        self._local: LocalData | None = None
        self._reception: Reception | None = None
        self._restoring: asyncio.Future[Any] | None = None
        self._built = False
        self._left: list[str] = []

    @property
    def takes(self) -> frozenset[DiskCopy]:
        """What is copied out of the save; other disks are where they were."""
        return frozenset({DiskCopy.MIRROR})

    @property
    def exports(self) -> RestoredDisks:
        """Each disk has a server of its own, until libvirt opens it."""
        return self._exports

    async def offers(self) -> Mapping[str, str]:
        """Nothing; it is noted that the domain is one that is restored."""
        await in_thread(self._restoring_file.write, Restoring())
        return {}

    async def data_ports(
        self,
        address: str,  # noqa: ARG002 - see base
        ports: tuple[int, int],  # noqa: ARG002
    ) -> tuple[int, int] | None:
        """Nothing comes by TCP."""
        return None

    async def attach(self) -> Guest:
        """Take up a restore that another process began; what became of the guest."""
        noted, state = await in_thread(self._restoring_file.read), await self._settled_state()
        if state in {State.RUNNING, State.BLOCKED, State.SHUTDOWN}:
            return Guest.RUNNING
        if state not in _GONE:
            return Guest.STOPPED
        await check_ended(self._domain.name, self._uuid)
        return Guest.STOPPED if noted and not noted.resumed else Guest.DEAD

    async def host_parts(self, plan: Plan) -> Sequence[HostPart]:
        """What of this host the XML names that libvirt will be given."""
        here, connection = await self._adapted(plan), await self._connected()
        self._offered = await handed.emulators(connection)
        return await handed.planned(connection, here, self._offered)

    async def parts_of_cookie(self, cookie: bytes) -> Sequence[HostPart]:  # noqa: ARG002 - see base
        """There is none."""
        return ()

    async def build(self, domain: Domain, plane: DataPlane, plan: Plan) -> None:
        """See that there is room for it in libvirt, and write down what is to be done."""
        if plane.local is None:
            raise HypervisorError("a machine is restored by a process of the host that it is on")
        self._domain, self._local = domain, plane.local
        self._plan = await self._adapted(plan)
        handed.check_plan(self._plan, domain)
        handed.check_cookie(self._plan.cookie, domain)
        said = read_plan(plan)
        self._memory = said.file
        if said.first is not None:
            self._copy = ImageCopy(Path(said.file), self._uuid, self._ledger)
        if self._feed is None:
            self._feed = await Feed.open(self._uri, self._uuid)
        if (state := await self._state()) not in _GONE:
            raise HypervisorError(
                f"there is a domain {domain.name} here by now, {State(state).name.lower()}",
                remedy="see `virsh list`",
            )
        kept = "" if self._plan.transient else self._plan.parameters.get(Parameter.PERSIST_XML, "")
        noted = Restoring(
            begun=True,
            definition=str(kept),
            autostart=bool(kept) and self._plan.autostart,
            tpm_is_new=not await in_thread(os.path.lexists, states_of(domain)),
            new_files=() if self._copy is None else await in_thread(missing, self._plan),
        )
        self._built = True
        await in_thread(self._restoring_file.write, noted)
        self._exports.stands(plane.local)

    async def listen(self) -> Ticket:
        """Have libvirt read memory; its guest does not run before it is told to."""
        await self._exports.end()
        if not self._memory:
            return await self._receive()
        connection = await self._connected()
        xml = str(self._plan.parameters[Parameter.DEST_XML])
        file = self._memory if self._copy is None else str(await self._copy.make(xml))
        self._restoring = call(connection.raw.restoreFlags, file, xml, SAVE_PAUSED)
        return Ticket(uri=f"file:{self._memory}")

    async def _receive(self) -> Ticket:
        """Have libvirt take what it had sent, at the socket that the save was told of."""
        if self._local is None:
            raise HypervisorError("the machine is not built")
        path = self._local.socket
        self._ledger.record("scratch", path=path)
        self._reception = Reception(
            self._uri,
            self._domain.name,
            self._plan,
            self._has_memory,
            await in_thread(listening_here, Path(path)),
        )
        self._restoring = asyncio.ensure_future(self._reception.take())
        return Ticket(uri=f"unix:{path}")

    async def landed(self) -> None:
        """Wait until libvirt has read memory, and QEMU has it."""
        if self._restoring is None:
            raise HypervisorError("the machine is not built")
        try:
            await asyncio.shield(self._restoring)
        except OSError as error:
            reason = self._last_said() or plain_words(error)
            raise HypervisorError(f"memory does not come: {reason}", remedy=SEE_LOGS) from error
        except RefusedError as error:
            reason = self._last_said() or plain(error.message)
            raise HypervisorError(
                f"libvirt cannot restore it: {reason}", remedy=SEE_LOGS
            ) from error
        await self._sync_parents()
        if self._reception is not None and self._local is not None and self._local.paused:
            await self._take_images()
        if self._copy is not None:
            with contextlib.suppress(HypervisorError):  # memory is there; the ledger has the copy
                await self._copy.remove()

    async def _take_images(self) -> None:
        """Or its QEMU would end itself when it is moved or saved before it has run."""
        try:
            await take_images(await self._raw())
        except HypervisorError as error:
            raise HypervisorError(
                f"it cannot be left paused: {error.message}", remedy="restore it without --paused"
            ) from error

    async def _sync_parents(self) -> None:
        """What its TPM's state has of directories is on the disk; see ``TargetTpm.sync``."""
        for tpm in self._domain.tpm:
            if (state := state_of(self._domain, tpm)).is_dir():
                await in_thread(swtpm.sync_parents, state)

    def accept_cookie(self, cookie: bytes) -> None:
        """Its source has none."""

    async def died(self) -> str:
        """Returns, with the reason, when the machine is gone: it outlives its libvirtd."""
        with contextlib.suppress(HypervisorError):  # there is nothing more to hear
            reason = await self._heard().until(lambda known: known.ended or None)
            return self._last_said() or reason
        return await asyncio.get_running_loop().create_future()

    async def run(self, *, paused: bool) -> int:
        """Let the guest run (or stay as its user had paused it); ns of the clock.

        Raises:
            HypervisorError: It was refused, and the guest provably never ran.
            InDoubt: Nobody knows whether it has.
        """
        feed, state, noted = (
            self._feed,
            await self._state_again(),
            await in_thread(self._restoring_file.read),
        )
        noted = noted or Restoring()
        if state in _GONE:
            gone = HypervisorError("the machine that was restored here is gone, and never ran")
            raise self._doubt(gone) if noted.resumed else gone
        self._released = True
        await in_thread(self._restoring_file.write, msgspec.structs.replace(noted, resumed=True))
        if paused or state == State.RUNNING:
            return time.monotonic_ns()
        if feed is not None:
            feed.known.resumed_at = 0
        try:
            await self._resume(None if noted.resumed else noted)
        except LostError:
            try:
                self._connection = await self._open(_BACK_WITHIN)
                await self._resume(None)
            except LostError as error:
                raise self._doubt(error) from error
        return (feed.known.resumed_at if feed is not None else 0) or time.monotonic_ns()

    async def _state_again(self) -> int:
        """Its state, also of a libvirtd that went away and is back: nobody has let it run yet."""
        try:
            return await self._state()
        except LostError:
            self._connection = await self._open(_SETTLES_WITHIN)
            return await self._state()

    async def _resume(self, noted: Restoring | None) -> None:
        """Let the guest run.

        Args:
            noted: What was noted before, where nobody has ever tried to; else None.

        Raises:
            HypervisorError: It was refused, and has never run: that is noted again.
            LostError: libvirtd went away.
            InDoubt: It does not run, and may have.
        """
        raw = await self._raw()
        try:
            if raw is None:
                raise self._doubt(HypervisorError("its machine is gone"))
            await ask(raw.resume)
        except RefusedError as error:
            if (state := await self._state()) in {State.RUNNING, State.BLOCKED}:
                return
            if state != State.PAUSED or noted is None:
                raise self._doubt(error) from error
            await in_thread(self._restoring_file.write, noted)
            raise HypervisorError(error.message, remedy=error.remedy) from error

    def _doubt(self, error: HypervisorError) -> InDoubt:
        name = self._domain.name
        return InDoubt(
            f"whether {name} has run is not known: {error.message}",
            remedy=f"once libvirtd answers: `entourage recover {name}`",
        )

    async def persist_definition(self) -> None:
        """Write its definition down, where libvirt has none of it here; it starts as before."""
        noted, raw = await in_thread(self._restoring_file.read), await self._raw()
        if noted is None or raw is None or not noted.definition:
            return
        connection = await self._connected()

        def define() -> None:
            kept = raw if raw.isPersistent() else connection.raw.defineXML(noted.definition)
            if noted.autostart:
                kept.setAutostart(1)

        await ask(define)
        await in_thread(sync_definitions)

    async def finish_arrival(self) -> None:
        """Nothing of it is open any more; last of all, its guest's clock is moved on."""
        connection = await self._connected()
        await in_thread(self._restoring_file.remove)
        await volumes.refresh(connection, [disk.path for disk in self._domain.block])
        raw = await self._raw()
        if raw is not None and await self._state() in {State.RUNNING, State.BLOCKED}:
            await guestclock.move_on(raw, self._domain.name)

    async def kill(self) -> None:
        """End the machine, which never ran; a definition that was here stays.

        Raises:
            HypervisorError: It runs: somebody has started or resumed it.
        """
        if self._restoring is not None:
            if self._reception is not None:
                self._restoring.cancel()
            await asyncio.wait({self._restoring})
        if self._reception is not None:
            await self._reception.end()
        await self._exports.kill()
        if self._copy is not None:
            await self._copy.remove()
        noted = await in_thread(self._restoring_file.read)
        if noted is not None and noted.begun:
            if self._connection is not None and not await self._connection.alive():
                self._connection = await self._open(_SETTLES_WITHIN)
            never_ran = await self._end()
            if not noted.resumed:
                self._left = await self._remove_made(noted, never_ran=never_ran)
        await in_thread(self._restoring_file.remove)

    async def _remove_made(self, noted: Restoring, *, never_ran: bool) -> list[str]:
        """Remove what libvirt has made for it; what is left, sentences."""
        if self._restoring is not None:
            return await remove_made(noted, self._domain)
        if self._built:  # and libvirt was never asked
            return []
        connection = await self._connected()
        return await remove_unowned(noted, self._domain, connection, never_ran=never_ran)

    @property
    def after_kill(self) -> str:
        """What of that is left."""
        return "; ".join(self._left)

    async def _end(self) -> bool:
        """End it where it stands still; whether its guest has provably never run.

        Raises:
            HypervisorError: It runs, or has run.
        """
        name = self._domain.name
        state = await self._settled_state()
        if state in {State.RUNNING, State.BLOCKED}:
            raise HypervisorError(
                f"{name} runs, and was not let run by its restore; its save can be restored again",
                remedy=f"if it was not you who has started it, `virsh destroy {name}`;"
                f" then `entourage recover {name}`; to have it go on here, remove the save",
            )
        never_ran = False
        if state not in _GONE and (raw := await self._raw()) is not None:
            with contextlib.suppress(RefusedError):  # it has ended by itself
                why = (await ask(raw.state, 0))[1]  # of one that was resumed and paused, another
                await check_never_ran((await self._connected()).raw, raw, why)
                await ask(raw.destroy)
                never_ran = why == PAUSED_BY_MIGRATION
        await check_ended(name, self._uuid)
        return never_ran

    async def _settled_state(self) -> int:
        """Its state, once a libvirtd that was just asked to restore it has had time to begin."""
        deadline = time.monotonic() + (0 if self._restoring is not None else _BEGINS_WITHIN)
        # Nobody tells of a domain that does not come.
        while (state := await self._state()) in _GONE and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_AGAIN)
        return state

    async def _raw(self) -> Any:
        return await (await self._connected()).domain(self._uuid)

    async def _state(self) -> int:
        """Its ``virDomainState``; NONE where there is no such domain."""
        try:
            raw = await self._raw()
            return State.NONE if raw is None else int((await ask(raw.state, 0))[0])
        except RefusedError:  # it went away meanwhile
            return State.NONE

    async def _adapted(self, plan: Plan) -> LibvirtPlan:
        return await adapted(plan, self._domain, await self._connected())

"""A Xen domain that is being built here: the target's half of a migration.

    build    a socket in a directory that is root's alone; streams arrive at it over ssh
    listen   says where
    landed   xl's receiver, whose input the agent splices and whose output it reads, says READY
    run      GO to the receiver; its report is the proof that the guest runs, or never ran
    kill     the receiver sees the end of its input, and destroys its copy by itself

That the guest never ran is certain where the receiver has reported so; where a domain is there
that has used no processor time; and where there is none, and GO was not given on this host since
it booted: the file ``given`` in that directory, on tmpfs, is made before GO is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError, plain_words, what_to_do
from entourage.handover.values import Guest
from entourage.hosts.allowed import images_of
from entourage.hosts.beneath import through
from entourage.hosts.local import listening_here
from entourage.hosts.parts import HostPart, Kind, PartsCheck
from entourage.hosts.resources import Ledger
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DataPlane, DiskCopy, Plan, Ticket
from entourage.hypervisors.seams import IncomingSeams
from entourage.hypervisors.values import LocalData
from entourage.hypervisors.xen.arrivals import Arrivals
from entourage.hypervisors.xen.configuration import check_same, on_bridges
from entourage.hypervisors.xen.constants import INCOMING, STREAMS, arrives_in
from entourage.hypervisors.xen.disks import Disks
from entourage.hypervisors.xen.hostparts import host_parts
from entourage.hypervisors.xen.intake import Intake, receiver_ended
from entourage.hypervisors.xen.libxl import Life, life
from entourage.hypervisors.xen.machine import XenAnnouncing
from entourage.hypervisors.xen.plan import XenPlan
from entourage.hypervisors.xen.plugging import XenPlugging
from entourage.hypervisors.xen.receiver import Said
from entourage.hypervisors.xen.xenstore import ASK_AGAIN, RELEASED, XenStore
from entourage.hypervisors.xen.xl import xl
from entourage.settings.model import Settings

_DRAINS_WITHIN = 15.0  # seconds for the receiver to destroy its copy
_REPORTS_WITHIN = 60.0


class XenIncoming(IncomingSeams):
    """A domain that is being built on this host.

    Args:
        settings: This host's.
        domain: The domain; its UUID is what it is known by here.
        ledger: Where what is made is written down first.
    """

    def __init__(self, settings: Settings, domain: Domain, ledger: Ledger) -> None:
        self._settings = settings
        self._domain = domain
        self._uuid = str(domain.uuid)
        self._ledger = ledger
        self._directory = arrives_in(settings.paths.run, self._uuid)
        self._given = self._directory / "given"
        self._note = self._directory / "receiver"
        self._marker = f"{self._uuid}.xl-receive"
        self._secret = b""
        """What each stream begins with: whoever else has a key for the agent does not know it."""
        self._local: LocalData | None = None
        """Where a machine that was saved comes from; None for one that comes from another host."""
        self._intake: Intake | None = None
        self._arrivals: Arrivals | None = None
        self._store: XenStore | None = None
        self._check: PartsCheck = _nobody
        self._images = contextlib.ExitStack()
        self._plugging = XenPlugging(self._domid, domain.name)

    # No ``tpm``: a vTPM is another domain, and an external tool's to move.

    @property
    def takes(self) -> frozenset[DiskCopy]:
        """Raw disks are copied beside the memory."""
        return frozenset({Disks.way})

    @property
    def announcing(self) -> XenAnnouncing:
        """Entourage announces NICs by itself."""
        return XenAnnouncing()

    @property
    def plugging(self) -> XenPlugging:
        """Xl attaches devices of the host."""
        return self._plugging

    async def offers(self) -> Mapping[str, str]:
        """Nothing to choose from."""
        return {}

    async def networks(self) -> Mapping[str, str]:
        """None: Xen runs no networks of its own."""
        return {}

    async def attach(self) -> Guest:
        """Take up a machine that another process was building here; what became of it.

        One that is gone and was not given GO never ran: it counts as STOPPED, and ``run`` then
        says so.
        """
        # A receiver that has lost its agent destroys what it has, or goes on after GO.
        await receiver_ended(self._note, _DRAINS_WITHIN)
        now = await self._life()
        if now is None or now.ended:
            never = self._directory.is_dir() and not self._given.exists()
            return Guest.STOPPED if never else Guest.DEAD
        return Guest.STOPPED if _never_ran(now) else Guest.RUNNING

    def check_with(self, check: PartsCheck) -> None:
        """The configuration that xl is given comes at the beginning of its stream."""
        self._check = check

    async def _look(self, config: dict[str, Any]) -> None:
        """See that what xl is to build is the domain that was asked for, and allowed here.

        What a save has of bridges is changed before: the source's transport does so in a move.
        """
        if self._local is not None:
            await in_thread(on_bridges, config, self._domain)
        await in_thread(check_same, config, self._domain)
        await self._check(await in_thread(host_parts, config))

    async def build(self, domain: Domain, plane: DataPlane, plan: Plan) -> None:
        """Wait for streams; xl's receiver makes the machine as it reads its own."""
        if plane.local is not None and plane.local.paused:
            raise HypervisorError(
                "xl's receiver lets a domain run, and this one is to stay paused",
                remedy="restore it without --paused",
            )
        self._domain, self._local = domain, plane.local
        self._ledger.record("process", marker=self._marker)
        self._ledger.record("dir", path=str(self._directory))
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in self._directory.iterdir():  # of one that was killed, and is settled
            old.unlink()
        log = Path(self._settings.paths.log, f"{domain.name}.log")
        self._intake = Intake(self._marker, log, self._note, saved=plane.local is not None)
        names = msgspec.msgpack.decode(plan, type=XenPlan).parameters.disks
        copied = [disk for disk in domain.block if disk.id in names]
        disks = await self._copied(copied)
        streams = self._directory / STREAMS
        self._secret = secrets.token_bytes(32)
        self._arrivals = Arrivals(streams, self._secret, self._intake, disks, self._look)
        await self._arrivals.listen()

    async def _copied(self, disks: Sequence[Block]) -> Mapping[str, str]:
        """By what path each disk is written that the source copies.

        They are opened before they are asked about: they are then these files and devices, and no
        others.

        Raises:
            EntourageError: One may not be written.
        """
        if not disks:
            return {}
        beneath = images_of(self._settings.agent)
        by_path = [disk for disk in disks if await in_thread(_is_device, disk.path)]
        if by_path:  # what the settings do not name is not even opened
            await self._check([_device_part(disk) for disk in by_path])

        def opened() -> dict[str, int]:
            found: dict[str, int] = {}
            for disk in disks:
                if disk in by_path:
                    handle = os.open(disk.path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
                    self._images.callback(os.close, handle)
                else:
                    handle = self._images.enter_context(beneath.opened(disk.path, os.O_RDWR))
                found[disk.id] = handle
            return found

        def exchanged() -> Iterator[Block]:
            for disk in disks:
                if not Path(disk.path).samefile(through(found[disk.id])):
                    yield disk

        try:
            found = await in_thread(opened)
            await self._check(
                [
                    _device_part(disk)
                    if _is_device(found[disk.id])
                    else _copied_part(disk, found[disk.id])
                    for disk in disks
                ]
            )
            for disk in await in_thread(lambda: list(exchanged())):
                message = f"{disk.path} has become another file meanwhile"
                raise HypervisorError(message, device=disk.label)
        except OSError as error:
            raise HypervisorError(
                f"a disk cannot be written: {plain_words(error)}", remedy=what_to_do(error)
            ) from error
        return {name: through(handle) for name, handle in found.items()}

    async def listen(self) -> Ticket:
        """Where streams go to."""
        if self._local is not None:
            path = Path(self._local.socket)
            self._ledger.record("scratch", path=str(path))
            self._built().take(await in_thread(listening_here, path))
            return Ticket(uri=f"unix:{path}")
        return Ticket(uri=str(self._built().path), cookie=self._secret)

    async def landed(self) -> None:
        """Wait until the receiver says that all of the domain is here.

        Raises:
            HypervisorError: It has given up, or a disk cannot be written.
        """
        arrivals = self._built()
        ready = asyncio.ensure_future(arrivals.intake.reaches(Said.READY))
        broken = asyncio.ensure_future(arrivals.broken())
        try:
            await asyncio.wait({ready, broken}, return_when=asyncio.FIRST_COMPLETED)
            if broken.done():
                raise broken.result()
            ready.result()
        finally:
            ready.cancel()
            broken.cancel()

    def accept_cookie(self, cookie: bytes) -> None:
        """Nothing: the stream has had it all."""

    async def died(self) -> str:
        """Returns, with the reason, when the domain is gone after it was there; never before."""
        if self._arrivals is None:
            return await asyncio.get_running_loop().create_future()
        with contextlib.suppress(HypervisorError):
            await self._arrivals.intake.reaches(Said.READY)
        store = await self._opened()
        released = await store.watch(RELEASED)
        while True:
            released.clear()
            with contextlib.suppress(HypervisorError):  # a question that failed is no answer
                if await self._life() is None:
                    return "xl knows it no more"
            with contextlib.suppress(TimeoutError):  # it may be the one event that there will be
                async with asyncio.timeout(ASK_AGAIN):
                    await released.wait()

    async def run(self, *, paused: bool) -> int:  # noqa: ARG002 - TEST refuses one that is
        """GO: let the guest run; ns of the monotonic clock.

        Raises:
            HypervisorError: It was refused, and the guest provably never ran.
        """
        if self._intake is not None and self._intake.said is Said.READY:
            self._given.touch()
            try:
                async with asyncio.timeout(_REPORTS_WITHIN):
                    if await self._intake.go() is Said.RUNS:
                        return time.monotonic_ns()
                raise HypervisorError(
                    "xl could not let the domain run there", remedy=f"see {self._intake.log}"
                )
            except (TimeoutError, EOFError):  # the receiver was killed: finish what it began
                await self._intake.end()
        return await self._run_by_hand()

    async def _run_by_hand(self) -> int:
        """What the receiver would do after GO, as far as it has not."""
        domid = await self._domid()
        now = None if domid is None else life(domid)
        if domid is None or now is None or now.ended:
            if not self._given.exists():
                raise HypervisorError("the domain that was built here is gone, and never ran")
            return time.monotonic_ns()  # it may have run; ``died`` tells the rest
        self._given.touch()
        if (await (await self._opened()).name(domid)).endswith(INCOMING):
            await xl("rename", str(domid), self._domain.name)
        if _never_ran(now):
            await xl("unpause", str(domid))
        return time.monotonic_ns()

    async def halt(self) -> None:
        """Stop the guest and keep it: it was found running without a right to."""
        domid = await self._domid()
        if domid is not None:
            await xl("pause", str(domid))

    async def finish_arrival(self) -> None:
        """After the guest runs: close and remove what only an arrival needs."""
        await self._plugging.ended()
        if self._arrivals is not None:
            await self._arrivals.close()
        self._images.close()
        await in_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def persist_definition(self) -> None:
        """Nothing: xl keeps no definition of a domain that is off; its user has the file."""

    async def kill(self) -> None:
        """End the machine, which never ran; returns when its processes are gone.

        The receiver is let destroy its copy by itself; what is left after that, xl destroys.
        """
        if self._intake is not None:
            await self._intake.end(_DRAINS_WITHIN)
        await receiver_ended(self._note, _DRAINS_WITHIN)
        try:
            await self._destroy()
        finally:
            if self._arrivals is not None:
                await self._arrivals.close()
            self._images.close()
            if self._store is not None:
                store, self._store = self._store, None
                await store.close()

    async def _destroy(self) -> None:
        domid = await self._domid()
        if domid is None:
            return
        with contextlib.suppress(HypervisorError):
            await xl("destroy", str(domid))
        if life(domid) is not None:
            raise HypervisorError(
                f"xl does not end {self._domain.name}", remedy=f"`xl destroy {domid}`"
            )

    async def _domid(self) -> int | None:
        found = await (await self._opened()).domain_ids(self._uuid)
        return next((domid for domid in found if life(domid) is not None), None)

    async def _life(self) -> Life | None:
        domid = await self._domid()
        return None if domid is None else life(domid)

    async def _opened(self) -> XenStore:
        if self._store is None:
            self._store = await XenStore.open()
        return self._store

    def _built(self) -> Arrivals:
        if self._arrivals is None:
            raise HypervisorError("the machine is not built")
        return self._arrivals


def _is_device(disk: str | int) -> bool:
    """Whether a disk is a block device, by its path or as it is open."""
    try:
        return stat.S_ISBLK(os.stat(disk).st_mode)  # noqa: PTH116 - also of what is open
    except OSError:
        return False


def _copied_part(disk: Block, handle: int) -> HostPart:
    return HostPart(
        kind=Kind.COPIED, name=disk.path, place="disks", device=disk.label, handle=handle
    )


def _device_part(disk: Block) -> HostPart:
    """One that the settings must name, whatever is at its path by then."""
    return HostPart(kind=Kind.OTHER, name=disk.path, place="disks", device=disk.label)


def _never_ran(now: Life) -> bool:
    """Whether a domain has been held since it was made."""
    return now.paused and now.cpu_time == 0


async def _nobody(parts: Sequence[HostPart]) -> None:
    if parts:
        raise HypervisorError("nobody here says what the domain may be made of")

"""One migration job of libvirt's on its source: how far its phases have come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from entourage.domain import Block
from entourage.errors import HypervisorError
from entourage.hosts.hangup import Calls
from entourage.hypervisors.base import DiskCopy
from entourage.hypervisors.libvirt.connection import ask, call, phases
from entourage.hypervisors.libvirt.constants import Flag
from entourage.hypervisors.libvirt.copying import Traits, objections
from entourage.hypervisors.libvirt.events import Feed
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.process import daemon, qemu_of, way_of
from entourage.hypervisors.seams import Objection

Parameters = dict[str, str | int | list[str]]


class Disks:
    """The disks that Perform copies before memory."""

    way = DiskCopy.CARRY

    def __init__(self) -> None:
        self._top_only: dict[str, bool] = {}
        self._copied: dict[str, tuple[int, int]] = {}
        self._asked_at = 0.0
        self._traits: Mapping[str, Traits] = {}
        self._domain = ""

    def know(self, domain: str, traits: Mapping[str, Traits]) -> None:
        """What ``objections`` goes by."""
        self._domain, self._traits = domain, traits

    def objections(self, disk: Block) -> Sequence[Objection]:
        """What speaks against copying this disk: asked at TEST."""
        traits = self._traits.get(disk.id, Traits())
        return objections(self._domain, disk.id, disk.path, traits, read=disk.is_only_read)

    @property
    def names(self) -> list[str]:
        """Their ids."""
        return sorted(self._top_only)

    @property
    def top_only(self) -> bool:
        """Whether only the top images of their backing chains are copied."""
        return any(self._top_only.values())

    def may_leave_out(self, disk: Block) -> bool:
        """Whether its ``startupPolicy`` says so."""
        return self._traits.get(disk.id, Traits()).optional

    def carry(self, disk: Block, *, top_only: bool) -> None:
        """``start`` is to copy this disk.

        Raises:
            HypervisorError: libvirt copies either all disks with what they are built on, or none.
        """
        others = [
            name for name, top in self._top_only.items() if top != top_only and name != disk.id
        ]
        if others:
            raise HypervisorError(
                f"libvirt cannot copy it {'without' if top_only else 'with'} its backing files, and"
                f" {', '.join(others)} the other way",
                device=disk.label,
                remedy='give both the same copy = "flat" or "keep-chain"',
            )
        self._top_only[disk.id] = top_only

    def progress(self, disk: Block) -> tuple[int, int]:
        """Bytes done and in total, as last heard; (0, 0) where it is not copied."""
        return self._copied.get(disk.id, (0, 0))

    async def look(self, handle: Handle) -> None:
        """Ask how far they are."""
        for name in self._top_only:
            self._asked_at = time.monotonic()
            try:
                info: Mapping[str, int] = await ask(handle.raw.blockJobInfo, name, 0)
            except HypervisorError:
                continue
            finally:
                self._asked_at = 0.0
            if info:
                self._copied[name] = (info["cur"], info["end"])

    @property
    def under_way(self) -> bool:
        """Whether the copy of each has been seen."""
        return self._copied.keys() >= self._top_only.keys()

    @property
    def unanswered(self) -> float:
        """Seconds for which libvirt, or the QEMU that it asks, has not answered ``look``."""
        return time.monotonic() - self._asked_at if self._asked_at else 0.0


class Job:
    """The phases of one migration, as far as they have come, and what libvirt says meanwhile.

    Attributes:
        disks: Those that are to be copied.
        parameters, flags: What each phase is given.
        beginning: Begin: the XML and cookie for Prepare; None before it, and once it is given up.
        performing: Perform: the cookie for Finish; None before it.
        feed: What QEMU and libvirt say by themselves; None before the migration is armed.
        calls: QEMU's connections to the target; None before Perform.
        calls_of_daemon: Those of libvirtd, which makes the memory's for QEMU.
        host, port: Where memory goes.
        cut: Cuts memory off that is passed on by this process; None where it goes to a target.
    """

    def __init__(self) -> None:
        self.disks = Disks()
        self.parameters: Parameters = {}
        self.flags = Flag(0)
        self.beginning: asyncio.Future[tuple[str, bytes]] | None = None
        self.performing: asyncio.Future[bytes] | None = None
        self.feed: Feed | None = None
        self.calls: Calls | None = None
        self.calls_of_daemon: Calls | None = None
        self.host = ""
        self.port: int | None = None
        self.cut: Callable[[], None] | None = None

    async def begin(self, handle: Handle, parameters: Parameters, flags: Flag) -> tuple[str, bytes]:
        """Begin: from here on libvirt keeps others from changing the domain."""
        self.beginning = call(phases().begin, handle.raw, parameters, flags)
        xml, cookie = await asyncio.shield(self.beginning)
        self.flags, self.parameters = flags, parameters
        return xml, cookie

    def list_calls(self, name: str, uri: str) -> None:
        """What is opened from now on to the target, whose host stands in Prepare's URI."""
        self._close_calls()
        self.host, self.port = way_of(uri)
        self.calls = Calls(qemu_of(name), self.host)
        self.calls_of_daemon = Calls(daemon(), self.host)

    async def confirm(self, handle: Handle, *, cancelled: bool) -> None:
        """Confirm: the copy here ends, or, ``cancelled``, the guest is this host's again."""
        await ask(
            phases().confirm, handle.raw, self.parameters, b"", self.flags, cancelled=cancelled
        )

    def heard(self) -> Feed:
        """The feed; raises HypervisorError before the migration is armed."""
        if self.feed is None:
            raise HypervisorError("the migration is not armed")
        return self.feed

    def performed(self) -> asyncio.Future[bytes]:
        """Perform; raises HypervisorError before it has begun."""
        if self.performing is None:
            raise HypervisorError("the migration has not begun")
        return self.performing

    @property
    def copying(self) -> bool:
        """Whether disks may still be copied: libvirt sends the last only after that."""
        return bool(self.disks.names) and self.heard().known.migration != "device"

    async def close(self) -> None:
        """Let go of what it holds."""
        if self.feed is not None:
            await self.feed.close()
        self._close_calls()

    def _close_calls(self) -> None:
        for calls in (self.calls, self.calls_of_daemon):
            if calls is not None:
                calls.close()

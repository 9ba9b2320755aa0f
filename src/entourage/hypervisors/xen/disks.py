"""The disks of one migration that are copied beside its memory; raw ones, by a stream each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from entourage.domain import Block, Domain
from entourage.hypervisors.base import DiskCopy
from entourage.hypervisors.seams import Objection
from entourage.hypervisors.xen.streams import DiskCopy as Copy


class Disks:
    """What ``start`` and the stop have to copy."""

    way = DiskCopy.CARRY_RAW

    def __init__(self) -> None:
        self.names: list[str] = []
        self._copies: dict[str, Copy] = {}
        self._last: asyncio.Task[None] | None = None

    def objections(self, disk: Block) -> Sequence[Objection]:  # noqa: ARG002 - see DiskCarrying
        """Nothing, beside its format, which is looked at by its controller."""
        return ()

    def may_leave_out(self, disk: Block) -> bool:  # noqa: ARG002 - see DiskCarrying
        """Never: nobody can say so."""
        return False

    def carry(self, disk: Block, *, top_only: bool) -> None:  # noqa: ARG002 - raw disks have no chain
        """``start`` is to copy this disk."""
        self.names.append(disk.id)

    def progress(self, disk: Block) -> tuple[int, int]:
        """Bytes done of the pass under way and in total; (0, 0) where it is not copied."""
        copy = self._copies.get(disk.id)
        return copy.progress if copy else (0, 0)

    async def copy_first(
        self, here: Domain, there: Domain, ssh: Callable[[str], Sequence[str]], secret: bytes
    ) -> None:
        """Copy all of each, while the guest runs.

        Args:
            here: The domain as it runs.
            there: The same as it is to be.
            ssh: The command at whose end the agent takes the stream of that name.
            secret: What each stream begins with.
        """
        for name in self.names:
            disk, place = _disk(here, name), _disk(there, name)
            blank = not place.path.startswith("/dev/")
            self._copies[name] = Copy(disk, ssh(f"disk {name}"), secret, blank=blank)
        async with asyncio.TaskGroup() as group:
            for copy in self._copies.values():
                group.create_task(copy.first())

    def begin_last(self) -> None:
        """The guest is suspended: begin to copy what has changed since; ``last`` waits for it."""
        self._last = asyncio.create_task(self._copy_last())

    async def last(self) -> None:
        """Wait until what has changed is on the target, and proven."""
        if self._last is not None:
            await asyncio.shield(self._last)

    async def _copy_last(self) -> None:
        async with asyncio.TaskGroup() as group:
            for copy in self._copies.values():
                group.create_task(copy.last())

    async def end(self) -> None:
        """End what still copies, and let go of it."""
        if self._last is not None:
            self._last.cancel()
            await asyncio.gather(self._last, return_exceptions=True)
            self._last = None
        await asyncio.gather(*(copy.close() for copy in self._copies.values()))
        self._copies.clear()


def _disk(domain: Domain, name: str) -> Block:
    return next(disk for disk in domain.block if disk.id == name)

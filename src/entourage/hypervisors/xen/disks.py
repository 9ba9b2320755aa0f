"""The disks of one migration that are copied beside its memory; raw ones, by a stream each."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from entourage.domain import Block, Domain
from entourage.hypervisors.base import DiskCopy
from entourage.hypervisors.seams import Objection
from entourage.hypervisors.xen.configuration import Config, domain_type
from entourage.hypervisors.xen.streams import DiskCopy as Copy

_EMULATED: Final[Mapping[str, int]] = {"ide": 4, "ahci": 6}
"""An HVM guest's first disks, so many by its ``hdtype``, and all that are called ``sd…``, are the
device model's as well: libxl's ``libxl_dm.c``, ``libxl__build_device_model_args_new``.
"""


class Disks:
    """What ``start`` and the stop have to copy.

    Args:
        config: xl's own configuration of the domain.
    """

    way = DiskCopy.CARRY_RAW

    def __init__(self, config: Config) -> None:
        self._emulated = emulated(config)
        self.names: list[str] = []
        self._copies: dict[str, Copy] = {}
        self._last: asyncio.Task[None] | None = None

    def objections(self, disk: Block) -> Sequence[Objection]:
        """Whether its device model may write to it once the guest stands still.

        libxl stops that only after the guest has suspended: what it writes late would be lost here,
        and its guest told that it was written. Its format is looked at by its controller.
        """
        if disk.is_only_read or not is_emulated(disk.id, self._emulated):
            return ()
        reason = (
            "Xen emulates it for this HVM guest, and may write to it after it was copied"
            " for the last time"
        )
        free = f"xvd{chr(ord('a') + self._emulated)}"
        remedy = f"put it on storage that both hosts see; or call it {free} or later, if it is not"
        return [(reason, f"{remedy} the disk that the guest boots from: those are not emulated")]

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


def emulated(config: Config) -> int:
    """How many of a domain's first disks are emulated; none but an HVM guest's."""
    if domain_type(config) != "hvm":
        return 0
    kind = config.get("b_info", {}).get("type.hvm", {}).get("hdtype", "ide")
    return _EMULATED.get(str(kind), max(_EMULATED.values()))


def is_emulated(vdev: str, first: int) -> bool:
    """Whether a disk is emulated.

    Args:
        vdev: What xl calls it (``xen-vbd-interface(7)``).
        first: How many are, as ``emulated`` has it.
    """
    if not first or vdev.startswith("sd"):
        return bool(first)
    if found := re.match(r"(?:xvd|hd)([a-z]+)", vdev):
        letters = found[1]
        return len(letters) == 1 and ord(letters) - ord("a") < first
    numbered = re.match(r"d([0-9]+)", vdev)
    return numbered is None or int(numbered[1]) < first

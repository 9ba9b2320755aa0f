"""What a source asks of a target about a disk; ``Fit`` is in ``space``."""

from __future__ import annotations

import msgspec

from entourage.devices.block.images import NewImage
from entourage.devices.block.storage import Spot


class Look(msgspec.Struct, frozen=True, kw_only=True, tag="look"):
    """TEST: what is there at these paths? Answer: a Seen for each."""

    spots: tuple[Spot, ...]


class Digest(msgspec.Struct, frozen=True, kw_only=True, tag="digest"):
    """TEST: the SHA-256 of what is at this path; ``known`` is what the source has."""

    path: str
    known: str = ""


class Make(msgspec.Struct, frozen=True, kw_only=True, tag="make"):
    """PREPARE: make this. Answer: whether it could be preallocated, where that is asked."""

    new: NewImage


class Open(msgspec.Struct, frozen=True, kw_only=True, tag="open"):
    """PREPARE, once the machine stands: open the disk for the mirror. Answer: Export."""


class Fill(msgspec.Struct, frozen=True, kw_only=True, tag="fill"):
    """PREPARE, once all is copied: set all of the file that was made aside again."""

    path: str


class GiveRoom(msgspec.Struct, frozen=True, kw_only=True, tag="give-room"):
    """TRANSFER of a save that has failed: take nothing of the storage any more."""

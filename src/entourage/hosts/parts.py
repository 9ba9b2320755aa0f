"""What a machine that arrives names of this host, as its hypervisor's backend has found it.

A backend says what is named, and nothing of whether it may be: that is for ``allowed.Allowed``.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias


class Kind(enum.Enum):
    """By which of this host's rules a part is judged."""

    IMAGE = "image"
    """An image of a disk: made by this migration, or proven."""
    COPIED = "copied"
    """An image that the source writes to: made by this migration, or a device."""
    BOOT = "boot"
    """Firmware or a kernel, which the guest can read."""
    NETWORK = "network"
    """A bridge, a network of the hypervisor's, or an interface."""
    TAP = "tap"
    """The name of an interface that is made for it; one that is there must not be taken over."""
    PORT = "port"
    """A TCP port that is listened at, or a range of them: ``5900-5999``."""
    PROGRAM = "program"
    """The hypervisor's own program, where that is not one that it has here anyway."""
    MALFORMED = "malformed"
    """What is never allowed, because it could be read as something else; its name says why."""
    OTHER = "other"
    """Anything else: it must be named in the settings."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostPart:
    """One thing of this host's.

    Attributes:
        kind: What it is.
        name: Its path, or what the settings call it.
        place: Where it is named: ``devices/serial[1]/source/@path``.
        device: The label of the device that it belongs to, or ``domain``.
        format: Of an image.
        written: Whether an image is written to, and not only read.
        beneath: Directories beneath which it is the machine's own, and needs no naming.
        handle: The descriptor by which it is open, where it is used by that and not by its path.
    """

    kind: Kind
    name: str
    place: str
    device: str = "domain"
    format: str = "raw"
    written: bool = True
    beneath: tuple[str, ...] = ()
    handle: int | None = None


PartsCheck: TypeAlias = Callable[[Sequence[HostPart]], Awaitable[None]]
"""Asks this host's rules; raises an EntourageError where they do not allow all of them."""

"""Cordons: while a host has one, it takes no domains from others. All of it blocks.

Each is a file of its own, ``cordons/NAME.json`` below ``paths.state``, so that two campaigns which
empty one host do not lift each other's, and so that a power cut lifts none.
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Final

import msgspec

from entourage import durable
from entourage.errors import UsageError
from entourage.settings.model import Settings

BY_HAND: Final = "by-hand"
"""The name of the one that a user puts up without another name."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_MOST: Final = 4096  # bytes of one file that are read


class Cordon(msgspec.Struct, frozen=True, kw_only=True):
    """One of a host's.

    Attributes:
        name: A campaign's, or ``by-hand``.
        reason: What whoever is refused is told; empty where nobody has said.
        since: When it was put up, ISO 8601 with this host's offset.
    """

    name: str
    reason: str = ""
    since: str = ""

    def __str__(self) -> str:
        """What is said of it to those who are refused."""
        why = f": {self.reason}" if self.reason else ""
        return f"{self.name} since {self.since}{why}" if self.since else f"{self.name}{why}"


def cordons(settings: Settings) -> list[Cordon]:
    """All of this host's, by name. One whose file cannot be understood counts all the same."""
    found: list[Cordon] = []
    for path in sorted(_directory(settings).glob("*.json")):
        if not _NAME.match(path.stem):
            continue
        cordon = Cordon(name=path.stem)
        with contextlib.suppress(OSError, msgspec.MsgspecError), path.open("rb") as file:
            read = msgspec.json.decode(file.read(_MOST), type=Cordon)
            cordon = msgspec.structs.replace(read, name=path.stem)
        found.append(cordon)
    return found


def put_up(settings: Settings, name: str, reason: str) -> None:
    """Have this host take no domains, from when this returns; it is on the disk then.

    Raises:
        UsageError: The name cannot be one.
        OSError: It cannot be written.
    """
    path = _path(settings, name)
    if path.exists():
        return  # since it says
    cordon = Cordon(name=name, reason=reason, since=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    durable.write(path, msgspec.json.encode(cordon))


def lift(settings: Settings, name: str) -> bool:
    """Take one away; whether there was one.

    Raises:
        UsageError: The name cannot be one.
        OSError: It cannot be deleted.
    """
    path = _path(settings, name)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    durable.sync_directory(path.parent)
    return True


def _directory(settings: Settings) -> Path:
    return Path(settings.paths.state, "cordons")


def _path(settings: Settings, name: str) -> Path:
    check_name(name)
    return _directory(settings) / f"{name}.json"


def check_name(name: str) -> None:
    """Raise UsageError where a cordon, or a campaign, which has some, cannot be called so."""
    if not _NAME.match(name):
        raise UsageError(
            f"{name!r} is no name for a cordon or a campaign",
            remedy="letters, digits, '.', '_' and '-', at most 63 of them",
        )

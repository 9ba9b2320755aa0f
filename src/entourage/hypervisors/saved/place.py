"""Where a save is, or is being made, as this host knows it again: storage may not be mounted.

What is on storage that is not mounted must not be taken for what is not there. So the directory
above the save is noted on this host's own disk before anything is made or claimed in it, and
nothing is decided while another one is in its place.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from entourage import durable
from entourage.errors import HypervisorError, plain_words, what_to_do


class _Note(msgspec.Struct, frozen=True):
    """What is noted.

    Attributes:
        parent: Of the directory above: its file system (statvfs(3)'s ``f_fsid``), and its inode.
        generation: Of the domain in the save.
    """

    parent: tuple[int, int]
    generation: int


class Place:
    """The directory of one domain's save. Its methods block.

    Args:
        directory: The save's.
        uuid: The domain's.
        state: Of this host.
    """

    def __init__(self, directory: Path, uuid: str | None, state: Path) -> None:
        self._parent = directory.parent
        self._path = state / f"saves-{uuid}.json"

    def note(self, generation: int) -> None:
        """Note it; on this host's disk when this returns.

        Raises:
            OSError: It cannot be looked at, or not be noted.
        """
        note = _Note(parent=self._seen(), generation=generation)
        durable.write(self._path, msgspec.json.encode(note))

    def check(self) -> int | None:
        """See that it is the one that was noted.

        Returns:
            The generation that was noted; None where nothing was, or it is forgotten.

        Raises:
            HypervisorError: It is not; or that cannot be seen.
        """
        try:
            note = msgspec.json.decode(self._path.read_bytes(), type=_Note)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, RecursionError) as error:
            raise HypervisorError(
                f"{self._path} cannot be read: {plain_words(error)}",
                remedy=f"if nothing in {self._parent} is in doubt, delete it",
            ) from error
        try:
            same = self._seen() == note.parent
        except FileNotFoundError:
            same = False
        except OSError as error:
            raise HypervisorError(plain_words(error), remedy=what_to_do(error)) from error
        if not same:
            raise HypervisorError(
                f"{self._parent} is not the directory that it was: what is in the save cannot be"
                " seen",
                remedy=f"mount it again; where it was copied to other storage, delete {self._path}",
            )
        return note.generation

    def forget(self) -> None:
        """Nothing of it is in doubt any more."""
        durable.remove(self._path)

    def _seen(self) -> tuple[int, int]:
        return os.statvfs(self._parent).f_fsid, self._parent.stat().st_ino

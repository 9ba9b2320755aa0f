"""What another process must know of what is being done with a libvirt domain; in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from entourage import durable
from entourage.errors import HypervisorError, plain_words

Noted = TypeVar("Noted", bound=msgspec.Struct)


class NotesFile(Generic[Noted]):
    """The notes about one domain. Blocks.

    Args:
        path: Their file; None: they end with this process.
        form: What they are.
        says: What stands in them, for who must read a file that is damaged.
    """

    def __init__(self, path: Path | None, form: type[Noted], says: str) -> None:
        self._path = path
        self._form = form
        self._says = says
        self._noted: Noted | None = None

    @property
    def name(self) -> str:
        """The file's path; empty where there is none."""
        return str(self._path or "")

    def read(self) -> Noted | None:
        """What was written last, if only by another process; None where nothing was.

        Raises:
            HypervisorError: It cannot be read.
        """
        if self._path is None:
            return self._noted
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=self._form)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            raise HypervisorError(
                f"{self._path} cannot be read: {plain_words(error)}",
                remedy=f"it says {self._says}: read it, then move it away",
            ) from error

    def write(self, noted: Noted) -> None:
        """Write them down; on the disk when this returns.

        Raises:
            HypervisorError: They cannot be written.
        """
        if self._path is None:
            self._noted = noted
            return
        try:
            durable.write(self._path, msgspec.json.encode(noted))
        except OSError as error:
            raise HypervisorError(
                f"{self._path} cannot be written: {plain_words(error)}",
                remedy="make room there, or mend what is wrong with that directory",
            ) from error

    def remove(self) -> None:
        """All is done.

        Raises:
            HypervisorError: They are still there.
        """
        self._noted = None
        if self._path is None:
            return
        try:
            durable.remove(self._path)
        except OSError as error:
            raise HypervisorError(
                f"{self._path} cannot be removed: {plain_words(error)}", remedy="remove it"
            ) from error

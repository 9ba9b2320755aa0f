"""What is still to be done for a libvirt domain once it has arrived, or if it never does.

libvirt carries neither whether a domain starts with its host nor its checkpoints, and a definition
that was here before must come back where the guest does not come. It stands in a file, so that
``entourage recover`` knows it too.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from entourage import durable
from entourage.errors import HypervisorError, plain_words
from entourage.hypervisors.libvirt.checkpoints import Checkpoint


class Notes(msgspec.Struct, frozen=True, kw_only=True):
    """For one domain.

    Attributes:
        transient: It is to have no definition here.
        autostart: It is to start with its host.
        checkpoints: Those that are to be known here, each after its parent.
        replaced: The XML of the definition that was here; empty where there was none.
        replaced_autostart: Whether that started with the host.
    """

    transient: bool = False
    autostart: bool = False
    checkpoints: tuple[Checkpoint, ...] = ()
    replaced: str = ""
    replaced_autostart: bool = False


class NotesFile:
    """The notes about one domain's arrival.

    Args:
        path: Their file; None: they end with this process.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._notes: Notes | None = None

    @property
    def name(self) -> str:
        """The file's path; empty where there is none."""
        return str(self._path or "")

    def read(self) -> Notes | None:
        """What was written last, if only by another process; None where nothing was.

        Raises:
            HypervisorError: It cannot be read.
        """
        if self._notes is None and self._path is not None:
            try:
                self._notes = msgspec.json.decode(self._path.read_bytes(), type=Notes)
            except FileNotFoundError:
                return None
            except (OSError, msgspec.DecodeError, RecursionError) as error:
                raise HypervisorError(
                    f"{self._path} cannot be read: {plain_words(error)}",
                    remedy="it says what is to be done for a domain that arrives here, and may hold"
                    " a definition that was here before: read it, then move it away",
                ) from error
        return self._notes

    def write(self, notes: Notes) -> None:
        """Write them down; durable when this returns.

        Raises:
            HypervisorError: They cannot be written.
        """
        if self._path is not None:
            try:
                durable.write(self._path, msgspec.json.encode(notes))
            except OSError as error:
                raise HypervisorError(
                    f"{self._path} cannot be written: {plain_words(error)}",
                    remedy="make room there, or mend what is wrong with that directory",
                ) from error
        self._notes = notes

    def remove(self) -> None:
        """All is done."""
        self._notes = None
        if self._path is not None:
            durable.remove(self._path)

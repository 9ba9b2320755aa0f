"""What another process must know of a restore of a libvirt domain; in a file.

libvirt does not say whether a guest that stands still has ever run. So it is noted that libvirt is
asked to restore it, and that it is let run, each before that is done.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from entourage import durable
from entourage.errors import HypervisorError, plain_words
from entourage.hosts.threads import in_thread


class Restoring(msgspec.Struct, frozen=True, kw_only=True):
    """What another process must know of a restore.

    Attributes:
        begun: libvirt was, or is about to be, asked to restore it.
        resumed: The guest was, or is about to be, let run.
        definition: The XML that is to be written down; empty: none.
        autostart: Whether it is to start with this host, as it did with that where it was saved.
    """

    begun: bool = False
    resumed: bool = False
    definition: str = ""
    autostart: bool = False


class RestoringFile:
    """The notes of one restore.

    Args:
        path: Their file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self) -> Restoring | None:
        """What was noted; None where nothing was, or all is done.

        Raises:
            HypervisorError: It cannot be read.
        """

        def read() -> Restoring | None:
            try:
                return msgspec.json.decode(self._path.read_bytes(), type=Restoring)
            except FileNotFoundError:
                return None
            except (OSError, msgspec.DecodeError, RecursionError) as error:
                raise HypervisorError(
                    f"{self._path} cannot be read: {plain_words(error)}",
                    remedy="it says how far a restore has come: read it, then move it away",
                ) from error

        return await in_thread(read)

    async def write(self, noted: Restoring) -> None:
        """Write it down; on the disk when this returns.

        Raises:
            HypervisorError: It cannot be written.
        """
        try:
            await in_thread(durable.write, self._path, msgspec.json.encode(noted))
        except OSError as error:
            raise HypervisorError(
                f"{self._path} cannot be written: {plain_words(error)}",
                remedy="make room there, or mend what is wrong with that directory",
            ) from error

    async def remove(self) -> None:
        """All is done."""
        await in_thread(durable.remove, self._path)

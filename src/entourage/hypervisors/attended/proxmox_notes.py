"""The notes of Proxmox VE's attended VMs: files in the cluster's file system, by a VM's number.

A number may become another VM's, and a VM another node's: so a note says whose it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from entourage.errors import HypervisorError, plain_words, what_to_do
from entourage.hypervisors.attended.toolstack import Note


class _Written(msgspec.Struct, frozen=True, kw_only=True):
    """A note as it is written.

    Attributes:
        host, nonce: As in ``Note``.
        uuid: The VM's.
    """

    host: str
    nonce: str
    uuid: str


class Notes:
    """All of a cluster's notes. Every method but ``clear`` raises HypervisorError.

    Args:
        place: Their directory, which is the same on each node.
    """

    def __init__(self, place: Path) -> None:
        self._place = place

    def _path(self, vmid: str) -> Path:
        return self._place / f"{vmid}.json"

    def read(self, vmid: str, uuid: str) -> Note | None:
        """A VM's note; None where it has none."""
        written = self._read(self._path(vmid))
        if written is None or written.uuid != uuid:
            return None
        return Note(host=written.host, nonce=written.nonce)

    def _read(self, path: Path) -> _Written | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Written)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise refused(path, error) from error
        except (msgspec.MsgspecError, RecursionError) as error:
            raise HypervisorError(f"{path}: {error}", remedy="remove that file") from error

    def write(self, vmid: str, uuid: str, note: Note | None) -> None:
        """Write a VM's note; None removes it."""
        path = self._path(vmid)
        try:
            if note is None:
                path.unlink(missing_ok=True)
                return
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            scratch = path.with_suffix(".new")
            written = _Written(host=note.host, nonce=note.nonce, uuid=uuid)
            scratch.write_bytes(msgspec.json.encode(written))
            scratch.replace(path)
        except OSError as error:
            raise refused(path, error) from error

    def clear(self, host: str, stays: Callable[[str, str], bool]) -> None:
        """Remove what one host has written.

        Args:
            host: That host.
            stays: Whether the note of a VM is to stay, by its number and UUID.
        """
        for path in self._place.glob("*.json"):
            with contextlib.suppress(HypervisorError):  # the next time, then
                written = self._read(path)
                if written is None or written.host != host or stays(path.stem, written.uuid):
                    continue
                if self._read(path) == written:  # another host may have written meanwhile
                    self.write(path.stem, written.uuid, None)


def refused(path: Path, error: OSError) -> HypervisorError:
    """What is told of a file of the cluster's that cannot be read or written."""
    return HypervisorError(f"{path}: {plain_words(error)}", remedy=what_to_do(error))

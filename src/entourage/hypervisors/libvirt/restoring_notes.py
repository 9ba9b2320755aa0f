"""What another process must know of a restore of a libvirt domain; in a file.

libvirt does not say whether a guest that stands still has ever run. So it is noted that libvirt is
asked to restore it, and that it is let run, each before that is done.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from entourage.hypervisors.libvirt.notes import NotesFile


class Restoring(msgspec.Struct, frozen=True, kw_only=True):
    """What another process must know of a restore.

    Attributes:
        begun: libvirt was, or is about to be, asked to restore it.
        resumed: The guest was, or is about to be, let run.
        definition: The XML that is to be written down; empty: none.
        autostart: Whether it is to start with this host, as it did with that where it was saved.
        tpm_is_new: There was no state of its TPM here: libvirt makes one out of the save.
        new_files: Of another machine that is made of a save: files that libvirt and QEMU make for
            it, and that were not there.
    """

    begun: bool = False
    resumed: bool = False
    definition: str = ""
    autostart: bool = False
    tpm_is_new: bool = False
    new_files: tuple[str, ...] = ()


def restoring_notes(path: Path) -> NotesFile[Restoring]:
    """The notes of one restore.

    Args:
        path: Their file.
    """
    return NotesFile(path, Restoring, "how far a restore has come")

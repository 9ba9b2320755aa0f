"""What is still to be done for a libvirt domain once it has arrived, or if it never does.

libvirt carries neither whether a domain starts with its host nor its checkpoints, and a definition
that was here before must come back where the guest does not come. It stands in a file, so that
``entourage recover`` knows it too.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from entourage.hypervisors.libvirt.checkpoints import Checkpoint
from entourage.hypervisors.libvirt.notes import NotesFile


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


def arrival_notes(path: Path | None) -> NotesFile[Notes]:
    """The notes about one domain's arrival.

    Args:
        path: Their file; None: they end with this process.
    """
    says = "what is to be done for a domain that arrives here, and may hold a definition that was"
    return NotesFile(path, Notes, f"{says} here before")

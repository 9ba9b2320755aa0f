"""What becomes of disks when a machine is saved. Imports nothing: a shell's TAB waits for it."""

from __future__ import annotations

import enum


class Disks(enum.StrEnum):
    """What becomes of the disks of a machine that is saved."""

    KEEP = "keep"
    """They stay where they are, and must not change before it is restored."""
    COPY = "copy"
    """They are copied into the save, as of the moment of its memory."""
    REFERENCE = "reference"
    """They stay where they are; its user sees to it that they are as they were."""

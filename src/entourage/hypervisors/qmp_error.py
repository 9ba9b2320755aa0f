"""What QEMU refuses, whoever has told it to do something."""

from __future__ import annotations

from entourage.errors import HypervisorError


class CommandError(HypervisorError):
    """QEMU understood a command and refused it.

    Attributes:
        reason: QEMU's own words.
    """

    def __init__(self, command: str, reason: str, *, device: str = "") -> None:
        super().__init__(f"QEMU refuses {command}: {reason}", device=device)
        self.reason = reason

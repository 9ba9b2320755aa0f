"""What two daemons say to each other beside a migration's own messages."""

from __future__ import annotations

from types import NoneType
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from entourage.hosts.frames import Notice, Question
from entourage.hypervisors.attended.origin import Uuid
from entourage.messages import HostName
from entourage.steps import Refusal

Nonce = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]

SshHost = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,254}\Z")]
"""What a domain's metadata may have ssh connect to: a host's name or address."""


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """A migration of this domain is about to begin: drive its devices over this link.

    Attributes:
        uuid: The domain's.
        nonce: What the source has written where the migration takes it along.
        target: The target's name, as the source's ssh knows it.
    """

    uuid: Uuid
    nonce: Nonce
    target: HostName


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The migration has failed on the source, or was refused.

    Attributes:
        message: Why.
        remedy: What the user can do; empty where ``refusals`` say it.
        refusals: Everything that TEST has found.
    """

    message: str
    remedy: str = ""
    refusals: Annotated[tuple[Refusal, ...], Meta(max_length=1000)] = ()

    def __str__(self) -> str:
        """All of it, a line for each refusal."""
        if self.refusals:
            return "\n".join(f"  {refusal}" for refusal in self.refusals)
        return f"  {self.message} ({self.remedy})" if self.remedy else f"  {self.message}"


class Go(msgspec.Struct, frozen=True, kw_only=True):
    """The target has recorded GO, and there is no way back from QEMU's Load: send the rest."""


BEGIN: Final = Question("attend", Begin, NoneType)
ENDED: Final = Notice("attend-ended", Ended)
GO: Final = Notice("attend-go", Go)

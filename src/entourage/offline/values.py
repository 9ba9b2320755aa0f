"""What source and target of an offline move say to each other, over a link of their own."""

from __future__ import annotations

from types import NoneType
from typing import Annotated

import msgspec
from msgspec import Meta

from entourage.devices.block.storage import Seen, Spot
from entourage.hosts.frames import Question
from entourage.hypervisors.values import Definition
from entourage.messages import HostName, MigrationId
from entourage.steps import Refusal

Uuid = Annotated[str, Meta(pattern=r"^[0-9A-Fa-f-]{36}\Z")]


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A domain that is off, and that the source would give away.

    Attributes:
        migration: The id of this move.
        source: What its host calls itself.
        journal: The UUID of the journal there.
        generation: The domain's, as that journal counts it.
        hypervisor: The name of the target's that is to have it.
        definition: The domain.
    """

    migration: MigrationId
    source: HostName
    journal: str
    generation: Annotated[int, Meta(ge=0, le=1 << 52)]
    hypervisor: str
    definition: Definition


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a claim: the UUID of the target's journal."""

    journal: str


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """The source has forgotten it: the target is to define it.

    Attributes:
        certain: The user has vouched that no host has it.
    """

    migration: MigrationId
    uuid: Uuid
    certain: bool = False


LOOK = Question("offline-look", list[Spot], list[Seen])
TEST = Question("offline-test", Offer, list[Refusal])
CLAIM = Question("offline-claim", Offer, Claimed)
"""Keep what is to be defined, on the disk; it replaces an older claim of that domain."""
ADOPT = Question("offline-adopt", Released, bool)
"""Define it. Done before it is no error. False: it may have been, and have left; see ``Claim``."""
DROP = Question("offline-drop", Released, NoneType)
"""The source keeps it after all."""

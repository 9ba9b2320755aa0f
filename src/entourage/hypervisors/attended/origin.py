"""What the source of an attended migration shows of the domain, for a target that cannot know.

A host that was booted since has no trace of a guest that ran on it for a moment. The source's
toolstack has decided whether it did: it has let its own copy run on, or has ended it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from entourage.errors import InDoubt
from entourage.handover.values import Role
from entourage.hosts.frames import Question
from entourage.hosts.ssh import start_agent
from entourage.hypervisors.attended.toolstack import Shown
from entourage.journal.journal import Journal
from entourage.settings.model import Settings

Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
_WITHIN = 30.0  # seconds


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """What does the daemon's toolstack show of this domain?"""

    uuid: Uuid


class Here(msgspec.Struct, frozen=True, kw_only=True):
    """This."""

    shown: Shown


SHOWN: Final = Question("attend-shown", Where, Here)


def source_of(settings: Settings, uuid: str) -> str:
    """The host that a domain's unsettled arrival here comes from, by the journal.

    Raises:
        InDoubt: There is none.
        JournalError: It cannot be read.
    """
    with Journal.open(Path(settings.paths.state, "journal.db"), read_only=True) as journal:
        for decision in journal.decisions():
            if decision.domain == uuid and decision.role is Role.TARGET and not decision.settled:
                return decision.peer_host
    raise InDoubt("nobody knows any more where it came from")


async def ask_source(settings: Settings, uuid: str) -> Shown:
    """What the toolstack of the host that a domain was to come from shows of it.

    Raises:
        InDoubt: Nobody knows which host that is.
        LinkError, TimeoutError: Its daemon does not answer.
    """
    host = source_of(settings, uuid)
    async with (
        asyncio.timeout(_WITHIN),
        start_agent(host, settings, ("attend", "--answer")) as link,
    ):
        return (await link.call(SHOWN, Where(uuid=uuid))).shown

"""Who speaks to the agent, as far as anything but its own word says so; and what it may ask for."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from entourage.errors import UsageError, plain_words, what_to_do
from entourage.hosts.slots import slot
from entourage.hypervisors.registry import elsewhere, same_as
from entourage.settings.model import AgentSettings, Settings


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """The source's side of the link.

    Attributes:
        proxy: This agent was started by a source on that same host, in the place of one on a host
            without Entourage. It may reach other hosts' hypervisors, which decide for themselves.
        local: A process of this very host has started it, for a machine that is saved or restored
            here: it is the user's own, and names what the user could name.
        source: The name that the key of the caller stands for (``--source``); empty: unknown.
    """

    proxy: bool = False
    local: bool = False
    source: str = ""

    @property
    def slots(self) -> str:
        """Whose slots its migrations take; no ``--source`` is that of the keys without one."""
        return f"source={self.source}" if self.source else "unsourced"

    def check(self, said: str, hypervisor: str, settings: AgentSettings, host: str) -> None:
        """See whether it may ask for anything here at all.

        Args:
            said: What the source calls itself.
            hypervisor: The hypervisor that it asks for.
            settings: This host's.
            host: This host's name.

        Raises:
            UsageError: It may not; the remedy names the setting.
        """
        if self.local:
            return
        if "/" in said:  # so is a save called, which no other host has here
            raise UsageError(
                f"{said!r} is no name of a host", host=host, remedy="name it otherwise"
            )
        named = (self.source,) if self.source else settings.sources
        if not any(fnmatchcase(said, pattern) for pattern in named):
            where = "--source in authorized_keys" if self.source else "agent.sources"
            raise UsageError(
                f"machines of {said!r} are not taken here",
                host=host,
                remedy=f"{where} there says whose are",
            )
        if elsewhere(hypervisor) is not None:
            allowed = self.proxy
        else:
            allowed = not {hypervisor, same_as(hypervisor)}.isdisjoint(settings.allowed_hypervisors)
        if not allowed:
            raise UsageError(
                f"the hypervisor {hypervisor!r} is not among those that are allowed here",
                host=host,
                remedy="add it to agent.allowed-hypervisors in the settings there",
            )

    def check_peer(self, peer: str, host: str) -> None:
        """See whether a migration that began before is this caller's.

        Args:
            peer: The source that began it.
            host: This host's name.

        Raises:
            UsageError: The caller's key stands for another source.
        """
        if self.source and not fnmatchcase(peer, self.source):
            raise UsageError(
                f"the migration was begun by {peer!r}, for which this key does not stand",
                host=host,
                remedy=f"run `entourage recover` on {peer}",
            )


def trusting(settings: Settings) -> Settings:
    """The settings of an agent that serves nobody but this host's own user."""
    agent = msgspec.structs.replace(
        settings.agent,
        image_directories=("/",),
        boot_directories=("/",),
        anyones_directories=("/",),
        devices=("*",),
        allow_unencrypted=True,
        believe_shared=True,
    )
    return msgspec.structs.replace(settings, agent=agent)


@contextlib.contextmanager
def own_slot(caller: Caller, settings: Settings, host: str) -> Generator[None]:
    """Hold one of those that a source has for migrations; a link that opens none needs none.

    Args:
        caller: The source's side of the link.
        settings: This host's.
        host: This host's name.

    Raises:
        UsageError: None is free, or they cannot be made.
    """
    most = settings.agent.links
    with contextlib.ExitStack() as held:
        try:
            slots = slot(Path(settings.paths.run, "links"), caller.slots, most)
            has_one = held.enter_context(slots)
        except OSError as error:
            raise UsageError(plain_words(error), host=host, remedy=what_to_do(error)) from error
        if not has_one:
            raise UsageError(
                f"there are {most} migrations of the source here already",
                host=host,
                remedy="wait for some to end, or raise agent.links in the settings there",
            )
        yield


def arrived_at() -> str:
    """The address of this host that ssh arrived at; empty where it did not."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    return connection[2] if len(connection) == 4 else ""  # noqa: PLR2004 - ssh(1)

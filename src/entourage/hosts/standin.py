"""Stand-ins: agents of this host, each in the place of one on a target without Entourage.

A stand-in is the same program as the agent that ssh starts on a target. It keeps the target's half
of the record, in a journal of its own on this host, and asks the target's hypervisor from afar.
docs/architecture.md says why it is a process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec

from entourage.errors import LinkLost
from entourage.hosts import ssh
from entourage.hosts.child import linked
from entourage.hosts.link import Link
from entourage.settings.load import PATH_VARIABLES
from entourage.settings.model import Settings

_AFAR = "afar "
"""Before a URI, in the name of a hypervisor on a host where no Entourage is."""


def afar(uri: str, identity: str = "") -> str:
    """The name of the hypervisor behind a URI, on a host where no Entourage is.

    Args:
        uri: By which it is reached from here.
        identity: What that host was known by when it was last asked; empty before that.
    """
    return f"{_AFAR}{uri} {identity}".rstrip()


def is_afar(hypervisor: str) -> bool:
    """Whether a hypervisor's name is of that sort."""
    return hypervisor.startswith(_AFAR)


def from_afar(hypervisor: str) -> tuple[str, str]:
    """The URI and the identity in such a name; a URI has no blanks in it."""
    uri, _, identity = hypervisor.removeprefix(_AFAR).partition(" ")
    return uri, identity


def beside(settings: Settings) -> Settings:
    """The settings of this host's stand-ins: a journal and locks of their own."""
    paths = settings.paths
    places = {name: str(Path(getattr(paths, name), "afar")) for name in ("state", "run")}
    return msgspec.structs.replace(settings, paths=msgspec.structs.replace(paths, **places))


def connect(host: str, hypervisor: str, settings: Settings) -> AbstractAsyncContextManager[Link]:
    """A link to who answers for a target: its own agent, or a stand-in; both end with the context.

    Args:
        host: As ssh knows it.
        hypervisor: The name of the target's.
        settings: This host's.

    Raises:
        LinkError: It cannot be started.
    """
    if not is_afar(hypervisor):
        return ssh.connect(host, settings)
    paths = beside(settings).paths
    # Where ssh arrived on this host is no address of the target's.
    environment = {key: text for key, text in os.environ.items() if key != "SSH_CONNECTION"}
    for name, variable in PATH_VARIABLES.items():
        environment[variable] = getattr(paths, name)
    return linked(
        # Never from the directory that somebody happens to be in: -m would look there first.
        [sys.executable, "-P", "-m", "entourage", "agent"],
        peer=host,
        silence=settings.migration.link_silence,
        explain=_explained,
        remedy="see whether `python3 -m entourage --version` works here",
        environment=environment,
        session=True,
    )


def _explained(_status: int | None, said: Sequence[str]) -> LinkLost:
    return LinkLost("; ".join(line for line in said if line))

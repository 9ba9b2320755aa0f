"""Proxy agents: agents of this host, each in the place of one on a target without Entourage.

A proxy agent is the same program as the agent that ssh starts on a target. It keeps the target's
half of the record, in a journal of its own on this host, and asks the target's hypervisor over the
network.
docs/adr/0018-a-proxy-agent-is-an-agent.md says why it is a process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec

from entourage.errors import LinkLost
from entourage.hosts.child import linked
from entourage.hosts.link import Link
from entourage.settings.load import PATH_VARIABLES
from entourage.settings.model import Settings

_AFAR = "afar"
THIS_HOST = "this host"
"""What a target is called that is the same host as the source: a save is restored there."""


def proxy_settings(settings: Settings) -> Settings:
    """The settings of this host's proxy agents: a journal and locks of their own."""
    paths = own_settings(settings).paths
    places = {name: str(Path(getattr(paths, name), _AFAR)) for name in ("state", "run")}
    return msgspec.structs.replace(settings, paths=msgspec.structs.replace(paths, **places))


def own_settings(settings: Settings) -> Settings:
    """This host's own settings, also where these are its proxy agents' already."""
    paths = settings.paths
    if not Path(paths.state).name == Path(paths.run).name == _AFAR:
        return settings
    places = {name: str(Path(getattr(paths, name)).parent) for name in ("state", "run")}
    return msgspec.structs.replace(settings, paths=msgspec.structs.replace(paths, **places))


def proxy_link(
    host: str, settings: Settings, *, local: bool = False
) -> AbstractAsyncContextManager[Link]:
    """A link to a proxy agent; it ends with the context.

    Args:
        host: What the target is called.
        settings: This host's.
        local: What it keeps is a save, on this host.

    Raises:
        LinkError: It cannot be started.
    """
    options = ["--proxy", *(["--local"] if local else [])]
    return _started(host, proxy_settings(settings), options)


def local_link(settings: Settings) -> AbstractAsyncContextManager[Link]:
    """A link to this host's own agent, for what does not leave this host; see ``proxy_link``."""
    return _started(THIS_HOST, own_settings(settings), ["--local"])


def _started(
    host: str, settings: Settings, options: Sequence[str]
) -> AbstractAsyncContextManager[Link]:
    """An agent that is a process of this host's.

    Args:
        host: What the target is called.
        settings: Its own: where its journal and locks are.
        options: Its own.
    """
    paths = settings.paths
    # Where ssh arrived on this host is no address of the target's.
    environment = {key: text for key, text in os.environ.items() if key != "SSH_CONNECTION"}
    for name, variable in PATH_VARIABLES.items():
        environment[variable] = getattr(paths, name)
    return linked(
        # Never from the directory that somebody happens to be in: -m would look there first.
        [sys.executable, "-P", "-m", "entourage", "agent", *options],
        peer=host,
        silence=settings.migration.link_silence,
        explain=_explained,
        remedy="see whether `python3 -m entourage --version` works here",
        environment=environment,
        session=True,
    )


def _explained(_status: int | None, said: Sequence[str]) -> LinkLost:
    return LinkLost("; ".join(line for line in said if line))

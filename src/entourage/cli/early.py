"""The agent of a save or a restore, started before all else.

It is a Python of its own, on this host. Started once everything is known that is to be asked of it,
it would be waited for; so it starts while this process imports what it needs and finds that out.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from entourage.hosts.link import Link
from entourage.hosts.proxy_agent import local_link, proxy_link
from entourage.hosts.route import host_of
from entourage.hypervisors.agents import EarlyAgent
from entourage.settings.load import load_settings
from entourage.settings.model import Settings


def for_save(config: Path | None, directory: str) -> EarlyAgent:
    """That of a save. One onto another host is started by ssh, which may ask its user something.

    Args:
        config: The settings file that was named.
        directory: The save's, as it was typed.
    """

    def start() -> AbstractAsyncContextManager[Link]:
        return proxy_link(directory, _settings(config), local=True)

    return EarlyAgent(None if host_of(directory) else start)


def for_restore(config: Path | None) -> EarlyAgent:
    """That of a restore; see ``for_save``."""
    return EarlyAgent(lambda: local_link(_settings(config)))


def _settings(config: Path | None) -> Settings:
    """This host's; their user is told of them by who reads them for the request."""
    return load_settings(config, warn=lambda _: None)

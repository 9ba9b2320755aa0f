"""What a user asks of a migration."""

from __future__ import annotations

import msgspec

from entourage.devices.base import Options
from entourage.hosts.route import Route
from entourage.settings.model import Settings


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for.

    Attributes:
        domain: The domain's name.
        route: How the target is reached.
        connect: The URI of the libvirtd that has the domain; None: whoever on this host has it.
        settings: This host's settings, with what the command line changed.
        options: What concerns devices.
        live: False stops the guest before its memory is copied.
        tool: An external migration tool for every class (``--tool``).
        dry_run: TEST only.
        examine: TEST sees also what takes long (``Machine.examine``), as with ``dry_run``.
        paused: The guest is not to run where it goes, also if it runs here.
    """

    domain: str
    route: Route
    connect: str | None = None
    settings: Settings = Settings()
    options: Options = Options()
    live: bool = True
    tool: str | None = None
    dry_run: bool = False
    examine: bool = False
    paused: bool = False

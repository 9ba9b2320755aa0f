"""Entourage moves a running virtual machine together with everything attached to it.

``await entourage.migrate("web1", "b")`` is what ``entourage migrate web1 b`` does. Controllers of
your own derive from `entourage.devices.base.Controller`; events are in `entourage.events`, errors
in `entourage.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from entourage.version import __version__

if TYPE_CHECKING:
    from entourage.devices.base import Options
    from entourage.events import Finished, Listener
    from entourage.settings.model import Settings

__all__ = ["__version__", "migrate"]


async def migrate(
    domain: str,
    target: str,
    *,
    settings: Settings | None = None,
    options: Options | None = None,
    live: bool = True,
    tool: str | None = None,
    on_event: Listener | None = None,
) -> Finished:
    """Move a running domain of this host to another one, or leave everything as it was.

    Args:
        domain: The domain's name.
        target: The host, as ssh knows it.
        settings: None: what this host's settings file says.
        options: What concerns devices: bridges and disks that are called otherwise there.
        live: False stops the guest before its memory is copied.
        tool: An external migration tool for every device class.
        on_event: Takes every event, in order; must return at once.

    Returns:
        The last event: where the domain runs now, and how long it was stopped.

    Raises:
        Refused: A device cannot move; nothing was touched.
        MigrationFailed: Rolled back: the domain runs on the source.
        InDoubt: Who may run the domain cannot be known from here.
        EntourageError: Nothing was begun.
    """
    # Imported here, so that `entourage --version` and the agent start without them.
    from entourage.devices.base import Options  # noqa: PLC0415
    from entourage.hosts.route import Route  # noqa: PLC0415
    from entourage.settings.load import load_settings  # noqa: PLC0415
    from entourage.source.migration import Migration  # noqa: PLC0415
    from entourage.source.request import Request  # noqa: PLC0415

    request = Request(
        domain=domain,
        route=Route(host=target),
        settings=load_settings(None) if settings is None else settings,
        options=Options() if options is None else options,
        live=live,
        tool=tool,
    )
    return await Migration(request, on_event or (lambda _event: None)).run()

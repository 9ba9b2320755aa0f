"""``--json``: one event a line, as ``docs/events.md`` describes them."""

from __future__ import annotations

from typing import Final

import msgspec

from entourage.events import AnyEvent, CopyProgress
from entourage.report.outlet import Outlet
from entourage.report.text import escaped

# A reader that has stopped reading: what only says how far a copy is may be left out.
_TOO_FAR_BEHIND: Final = 1000


class JsonLines:
    """Writes each event as a line of JSON.

    Args:
        outlet: Where to; nothing else may be written there.
    """

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._encoder = msgspec.json.Encoder()

    def __call__(self, event: AnyEvent) -> None:
        """Write one event."""
        if isinstance(event, CopyProgress) and self._outlet.backlog > _TOO_FAR_BEHIND:
            return
        line = escaped(self._encoder.encode(event).decode(), pairs=True)
        self._outlet.write(f"{line}\n")

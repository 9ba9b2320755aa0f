"""Pictures of what the terminal shows, for a README."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.text import Text

from entourage.events import AnyEvent
from entourage.report.ending import ending


def report_svg(events: Iterable[AnyEvent], *, title: str, width: int = 100) -> str:
    """The report of a migration as an SVG."""
    return _exported(Group(*ending(events, width=width)), title, width)


def terminal_svg(recorded: str, *, title: str, width: int = 100) -> str:
    """What a program wrote to a terminal, its colours included, as an SVG.

    Args:
        recorded: The text, with the escape sequences for colours; not for moving the cursor.
        title: Stands in the window's frame.
        width: Columns.
    """
    return _exported(Text.from_ansi(recorded), title, width)


def _exported(part: RenderableType, title: str, width: int) -> str:
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True,
        color_system="truecolor", highlight=False, markup=False, emoji=False,
    )  # fmt: skip
    console.print(part)
    # The same picture has the same name, so that making it again changes no file.
    return console.export_svg(title=title, unique_id="entourage")

"""Tables: the devices and their steps, and how everything went back."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

from entourage.events import AnyEvent, CopyProgress
from entourage.report.text import UNICODE, Glyphs, clean, duration, size
from entourage.report.view import STEPS, Cell, View
from entourage.steps import Step


def new_table() -> Table:
    """A table as all are: a head, and no lines but below that."""
    return Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, show_edge=False)


def steps_table(events: Iterable[AnyEvent], *, glyphs: Glyphs = UNICODE) -> Table | None:
    """Each device, each step, its time; None where no step was begun."""
    view = View.of(events)
    if not any(view.devices.values()):
        return None
    table = new_table()
    table.add_column("device", no_wrap=True)
    for step in STEPS:
        table.add_column(step.name, justify="right", no_wrap=True)
    copies = {what: copy for what, copy in view.copies.items() if what in view.devices}
    memory = view.copies.get("memory")
    if view.copies:
        table.add_column("done", justify="right", no_wrap=True)
    longest = {step: _longest(view, step) for step in STEPS}
    for label, cells in view.devices.items():
        row = [Text(clean(label))]
        row += [_cell(view, label, cells.get(step), longest[step], glyphs) for step in STEPS]
        if view.copies:
            row.append(Text(_part(view, copies[label]) if label in copies else "", style="dim"))
        table.add_row(*row)
    if memory is not None:
        done = f"{size(memory.sent)} sent" if memory.sent else _part(view, memory)
        table.add_row(Text("memory"), *[""] * len(STEPS), Text(done, style="dim"))
    if len(view.devices) > 1 and view.steps:
        table.add_row("all", *(_seconds(view.steps.get(step)) for step in STEPS), style="dim")
    return table


def recovery_table(events: Iterable[AnyEvent], *, glyphs: Glyphs = UNICODE) -> Table | None:
    """Each device that was put back, and what it was told; None where none had to be."""
    view = View.of(events)
    if not view.recovered:
        return None
    table = new_table()
    table.add_column("device", no_wrap=True)
    table.add_column("last good step", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("result")
    for one in view.recovered:
        step = glyphs.dash if one.last_good == Step.NONE else one.last_good.name
        result = (
            Text(f"{glyphs.failed} {clean(one.error)}", style="bold red")
            if one.error
            else Text(f"{glyphs.done} put back", style="green")
        )
        table.add_row(Text(clean(one.device)), step, duration(one.seconds), result)
    return table


def _part(view: View, copy: CopyProgress) -> str:
    """How much of a disk is the same there; not what was sent, for holes never are.

    The last figure may be older than the copy's end: once memory has landed, all copies are
    complete.
    """
    if copy.done >= copy.total or view.landed is not None:
        return f"all of {size(copy.total)}"
    return f"{100 * copy.done // copy.total} % of {size(copy.total)}"


def _longest(view: View, step: Step) -> str:
    """The device that a step waited for; empty where it had only one."""
    times = [
        (cell.seconds or 0.0, label)
        for label, cells in view.devices.items()
        if (cell := cells.get(step)) is not None
    ]
    return max(times)[1] if len(times) > 1 else ""


def _seconds(value: float | None) -> str:
    return "" if value is None else duration(value)


def _cell(view: View, label: str, cell: Cell | None, longest: str, glyphs: Glyphs) -> Text:
    if cell is None:
        return Text(glyphs.dash, style="dim")
    if view.gave_up(label, cell):
        return Text(f"({_seconds(cell.seconds)})", style="dim")
    if cell.error or cell.seconds is None:
        return Text(f"{glyphs.failed} {_seconds(cell.seconds)}".rstrip(), style="bold red")
    return Text(_seconds(cell.seconds), style="bold" if label == longest else "")

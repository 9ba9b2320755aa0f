"""The table of the plan: what will be done with each device, and what speaks against it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from rich.table import Table
from rich.text import Text

from entourage.events import Kind, MigrationPlanned, PlannedDevice
from entourage.report.table import new_table
from entourage.report.text import UNICODE, Glyphs, clean, size


class RefusalLike(Protocol):
    """A ``Refusal``, or the event that tells of one."""

    @property
    def device(self) -> str:
        """``block/disk0``."""
        ...

    @property
    def host(self) -> str:
        """Where the reason lies."""
        ...

    @property
    def reason(self) -> str:
        """What is wrong."""
        ...

    @property
    def remedy(self) -> str:
        """What can be done about it."""
        ...


def plan_table(
    planned: MigrationPlanned | None,
    refusals: Sequence[RefusalLike] = (),
    *,
    source: str,
    target: str,
    kind: Kind = "move",
    glyphs: Glyphs = UNICODE,
) -> Table:
    """A row for each device: what will be done with it, or why it cannot move.

    Args:
        planned: What TEST has found out; None where it did not get so far.
        refusals: What speaks against the migration.
        source: This host's name.
        target: The other's; either may be the directory of a save.
        kind: What is done with the domain.
        glyphs: The signs to draw with.
    """
    table = new_table()
    # The names give way to what is to be read or typed.
    table.add_column("device", no_wrap=True, max_width=24, overflow="ellipsis")
    table.add_column("what will be done", overflow="fold")
    for one in planned.devices if planned else ():
        if one.device == "memory" and any(refusal.device == "memory" for refusal in refusals):
            continue
        if planned and one.device == "memory":
            words = _memory(planned, one, kind)
        else:
            words = _device(one, source, target, kind)
        if kind in {"move", "save"}:  # else all of it stays where it is
            words = [*words, *_afterwards(one, source)]
        table.add_row(clean(one.device), clean("; ".join(words)))
    for device, reasons in _by_device(refusals):
        text = Text()
        for one in reasons:
            text.append("\n" if text else "")
            text.append(f"{glyphs.failed} on {clean(one.host or target)}: ", style="bold red")
            text.append(clean(one.reason), style="red")
            if one.remedy:
                text.append(f"\n  {glyphs.arrow} {clean(one.remedy)}", style="green")
        table.add_row(Text(clean(device), style="bold"), text)
    return table


def _by_device(refusals: Iterable[RefusalLike]) -> list[tuple[str, list[RefusalLike]]]:
    found: dict[str, list[RefusalLike]] = {}
    for refusal in refusals:
        found.setdefault(refusal.device, []).append(refusal)
    return list(found.items())


def _device(one: PlannedDevice, source: str, target: str, kind: Kind) -> list[str]:
    moved = one.here if one.here == one.there else f"{one.here}, there {one.there}"
    match one.action:
        case "in-place" if kind != "move":
            words = f"{moved} stays where it is"
        case "remade" if kind in {"save", "checkpoint"}:
            words = "made anew when it is restored"
        case "in-place":
            words = f"{moved} stays: both hosts see it, or have the same"
        case "copied":
            amount = f", about {size(one.size)}" if one.size else ""
            words = f"{one.here} is copied to {one.there}{amount}"
            if one.here == one.there:
                words = f"{one.here} is copied{amount}"
        case "remade":
            words = f"attached to {one.there}" + ("" if one.here == one.there else
                                                  f" there, {one.here} here")  # fmt: skip
        case "replugged":
            words = f"{one.here} is unplugged here, {one.there} is plugged in there"
        case "by-tool":
            return [f"moved by {one.tool}"]
        case "with-memory":
            words = "its state goes with the memory"
        case "handed-on":
            words = f"{one.here} goes to {target}"
        case "left-here":
            words = f"{one.here} stays on {source}: copy it to {target} for its next start there"
    return [words, f"{one.tool} is called beside it"] if one.tool else [words]


def _memory(planned: MigrationPlanned, one: PlannedDevice, kind: Kind) -> list[str]:
    words = f"copied, {size(one.size)}"
    if kind != "move":
        return [words]
    if planned.ports:
        first, last = planned.ports[0], planned.ports[-1]
        words += f", to {planned.address}, TCP ports {first} to {last}"
    if planned.encrypted is False:
        words += ", UNENCRYPTED"
    elif planned.encrypted is None:
        words += ", encrypted if the target has certificates"
    return [words]


def _afterwards(one: PlannedDevice, source: str) -> list[str]:
    if not one.erased:
        return []
    clear = one.action in {"with-memory", "handed-on"} or one.erased == one.here == one.there
    what = "it" if clear and not one.tool else one.erased
    return [f"afterwards {what} is deleted on {source}"]

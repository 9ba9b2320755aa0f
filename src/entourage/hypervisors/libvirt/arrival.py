"""What a libvirt domain's arrival changes on its target beside the machine itself.

libvirt carries neither whether a domain starts with its host nor its checkpoints. A definition of
the domain that was here before is set aside, and put back if the guest does not come.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from entourage import durable
from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.threads import in_thread
from entourage.hypervisors.libvirt.arrival_notes import Notes
from entourage.hypervisors.libvirt.checkpoints import redefine
from entourage.hypervisors.libvirt.connection import Connection, RefusedError, ask
from entourage.hypervisors.libvirt.constants import (
    OFF,
    STATE_NAMES,
    XML_INACTIVE,
    XML_SECURE,
    State,
)
from entourage.hypervisors.libvirt.notes import NotesFile
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.libvirt.process import check_ended
from entourage.hypervisors.libvirt.undefine import set_aside, undefine

_DEFINITIONS = Path("/etc/libvirt/qemu")
_AUTOSTARTED = _DEFINITIONS / "autostart"


async def make_way(raw: Any, plan: LibvirtPlan, file: NotesFile[Notes]) -> None:
    """Write down what is to be done on arrival; set a definition aside that is here already.

    While it is here, nobody could tell one that Finish has written from it: that there is none is
    the proof that the guest never ran.

    Args:
        raw: The domain of that UUID that is here; None where there is none.
        plan: The source's.
        file: Takes the notes.
    """
    before = await in_thread(file.read)

    def look() -> tuple[str, bool]:
        if raw is None:
            # What an arrival before this one has set aside, and could not put back.
            return (before.replaced, before.replaced_autostart) if before else ("", False)
        if (state := raw.state(0)[0]) not in OFF:
            raise HypervisorError(
                f"there is a domain {raw.name()} here by now, {STATE_NAMES[State(state)]}",
                remedy="see `virsh list` there",
            )
        return _kept(raw), bool(raw.autostart())

    replaced, autostart = await ask(look)
    notes = Notes(
        transient=plan.transient,
        autostart=plan.autostart,
        checkpoints=plan.checkpoints,
        replaced=replaced,
        replaced_autostart=autostart,
    )
    await in_thread(file.write, notes)
    if raw is not None:
        await set_aside(raw)


async def finish(raw: Any, file: NotesFile[Notes], *, here: bool) -> list[str]:
    """Make so what libvirt does not carry, once the guest runs.

    Args:
        raw: The domain; None where it is gone already.
        file: Of the notes.
        here: Whether its libvirtd is this host's.

    Returns:
        What could not be done, each a sentence.
    """
    notes = await in_thread(file.read)
    if notes is not None and notes.replaced:  # never to be put back by a later arrival
        notes = msgspec.structs.replace(notes, replaced="")
        await in_thread(file.write, notes)
    if notes is None or raw is None:
        return []
    problems = await ask(redefine, raw, notes.checkpoints)
    try:
        if notes.transient:
            if await ask(raw.isPersistent):
                await set_aside(raw)
        elif notes.autostart:
            await ask(raw.setAutostart, 1)
            if here:
                await in_thread(sync_definitions)
    except RefusedError as error:
        name = await ask(raw.name)
        problems.append(
            f"{name} keeps a definition here: {error.message} (virsh undefine --keep-nvram {name})"
            if notes.transient
            else f"{name} does not start with this host: {error.message} (virsh autostart {name})"
        )
    return problems


async def forget(
    connection: Connection, domain: Domain, notes: Notes | None, *, made: bool, here: bool
) -> None:
    """End what there is of a domain that never ran, and its definition.

    What was here before is left: a definition that is not set aside yet, or is put back already.

    Args:
        connection: To its libvirtd.
        domain: The domain.
        notes: Those of its arrival, if it has begun.
        made: Whether this migration has begun to make it: else what is off was here before.
        here: Whether that libvirtd is this host's.
    """
    raw = await connection.domain(str(domain.uuid))
    if raw is None:
        if here:
            await check_ended(domain.name, str(domain.uuid))
        return

    def was_here() -> bool:
        if raw.state(0)[0] not in OFF:
            return False
        return not made or bool(notes and _kept(raw) == notes.replaced)

    with contextlib.suppress(RefusedError):  # libvirtd has ended it by itself meanwhile
        if await ask(was_here):
            return
        await ask(raw.destroy)
    name = domain.name
    await undefine(raw, name, here=here)
    if await connection.domain(str(domain.uuid)) is not None:
        raise HypervisorError(f"libvirt does not end {name}", remedy=f"virsh destroy {name}")
    if here:
        await check_ended(name, str(domain.uuid))


async def put_back(
    connection: Connection, domain: Domain, file: NotesFile[Notes], *, here: bool
) -> None:
    """Define again what was set aside, and forget the notes only once that is on the disk.

    A domain that somebody has defined here meanwhile stays as it is.

    Args:
        connection: To its libvirtd.
        domain: The domain.
        file: Of the notes.
        here: Whether that libvirtd is this host's.

    Raises:
        HypervisorError: libvirt does not take it; the notes still have it.
    """
    notes = await in_thread(file.read)
    if notes is not None and notes.replaced:
        raw = await connection.domain(str(domain.uuid))

        def define() -> None:
            if raw is None or _kept(raw) == notes.replaced:
                defined = connection.raw.defineXML(notes.replaced)
                defined.setAutostart(int(notes.replaced_autostart))

        try:
            await ask(define)
        except RefusedError as error:
            raise HypervisorError(
                f"libvirt does not take back the definition of {domain.name} that was set aside:"
                f" {error.message}",
                remedy=f"mend that, then `entourage recover {domain.name}`;"
                f" the XML is in {file.name}",
            ) from error
        if here:
            await in_thread(sync_definitions)
    await in_thread(file.remove)


def _kept(raw: Any) -> str:
    """A domain's definition. Blocks."""
    return str(raw.XMLDesc(XML_SECURE | XML_INACTIVE))


def sync_definitions() -> None:
    """Wait until the names of definitions are on the disk: libvirt syncs their files alone."""
    for directory in (_DEFINITIONS, _AUTOSTARTED):
        if directory.is_dir():
            durable.sync_directory(directory)

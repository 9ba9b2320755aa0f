"""What a libvirt domain's arrival changes on its target beside the machine itself.

libvirt carries neither whether a domain starts with its host nor its checkpoints. A definition of
the domain that was here before is set aside, and put back if the guest does not come.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.files import sync_directory
from entourage.hypervisors.libvirt.arrival_notes import Notes, NotesFile
from entourage.hypervisors.libvirt.checkpoints import redefine
from entourage.hypervisors.libvirt.connection import Connection, RefusedError, ask, bindings
from entourage.hypervisors.libvirt.constants import XML_INACTIVE, XML_SECURE, State
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.libvirt.undefine import set_aside, undefine

_DEFINITIONS = Path("/etc/libvirt/qemu")
_AUTOSTARTED = _DEFINITIONS / "autostart"


async def make_way(raw: Any, plan: LibvirtPlan, file: NotesFile) -> None:
    """Write down what is to be done on arrival; set a definition aside that is here already.

    While it is here, nobody could tell one that Finish has written from it: that there is none is
    the proof that the guest never ran.

    Args:
        raw: The domain of that UUID that is here; None where there is none.
        plan: The source's.
        file: Takes the notes.
    """

    def look() -> tuple[str, bool]:
        return raw.XMLDesc(XML_SECURE | XML_INACTIVE), bool(raw.autostart())

    replaced, autostart = ("", False) if raw is None else await ask(look)
    notes = Notes(
        transient=plan.transient,
        autostart=plan.autostart,
        checkpoints=plan.checkpoints,
        replaced=replaced,
        replaced_autostart=autostart,
    )
    await asyncio.to_thread(file.write, notes)
    if raw is not None:
        await set_aside(raw)


async def finish(raw: Any, file: NotesFile, *, here: bool) -> list[str]:
    """Make so what libvirt does not carry, once the guest runs.

    Args:
        raw: The domain; None where it is gone already.
        file: Of the notes.
        here: Whether its libvirtd is this host's.

    Returns:
        What could not be done, each a sentence.
    """
    notes = await asyncio.to_thread(file.read)
    if notes is None or raw is None:
        return []
    problems = await ask(_finish, raw, notes)
    if notes.autostart and here and _AUTOSTARTED.is_dir():
        await asyncio.to_thread(sync_directory, _AUTOSTARTED)
    return problems


def _finish(raw: Any, notes: Notes) -> list[str]:
    problems = redefine(raw, notes.checkpoints)
    error = bindings().libvirtError
    if notes.transient:
        with contextlib.suppress(error):
            raw.undefine()
    elif notes.autostart:
        try:
            raw.setAutostart(1)
        except error as failure:
            name = raw.name()
            problems.append(f"{name} does not start with this host: {failure} (virsh autostart)")
    return problems


async def forget(connection: Connection, domain: Domain, *, made: bool, here: bool) -> None:
    """End what there is of a domain that never ran, and its definition.

    Args:
        connection: To its libvirtd.
        domain: The domain.
        made: Whether this migration has begun to make it: else what is off was here before.
        here: Whether that libvirtd is this host's.
    """
    raw = await connection.domain(str(domain.uuid))
    if raw is None or (not made and (await ask(raw.state, 0))[0] == State.SHUT_OFF):
        return
    with contextlib.suppress(RefusedError):
        await ask(raw.destroy)
    name = domain.name
    await undefine(raw, name, here=here)
    if await connection.domain(str(domain.uuid)) is not None:
        raise HypervisorError(f"libvirt does not end {name}", remedy=f"virsh destroy {name}")


def put_back(raw: Any, notes: Notes) -> None:
    """The definition that was here before. Blocks."""
    defined = raw.defineXML(notes.replaced)
    defined.setAutostart(int(notes.replaced_autostart))


def sync_definitions() -> None:
    """Wait until the names of definitions are on the disk: libvirt syncs their files alone."""
    if _DEFINITIONS.is_dir():
        sync_directory(_DEFINITIONS)

"""What libvirt and QEMU have made for a restore that never ran, and leave when it ends.

What was not there before is in the restore's notes, which are written before libvirt is asked. Who
has asked libvirt removes that. Another process, after a crash, cannot know what was done with this
host's domains since: it removes only what no domain has, and names the rest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from entourage.domain import Domain
from entourage.errors import plain_words
from entourage.hosts.threads import in_thread
from entourage.hypervisors.libvirt.another import variables_of_name
from entourage.hypervisors.libvirt.connection import Connection, RefusedError, ask
from entourage.hypervisors.libvirt.constants import XML_INACTIVE
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.restoring_notes import Restoring
from entourage.hypervisors.libvirt.tpm import erase_states, states_of


class _Other(NamedTuple):
    """A domain that there is: its name and UUID, and all that its XML says, running and kept."""

    name: str
    uuid: str
    says: frozenset[str]


async def remove_made(noted: Restoring, domain: Domain) -> list[str]:
    """Remove what was made, by who has asked libvirt for it; what is left, sentences.

    Args:
        noted: What was not there before.
        domain: The domain, which has ended.

    Raises:
        HypervisorError: The TPM's state is left.
    """
    if noted.tpm_is_new:  # with a definition here, libvirt leaves it
        await erase_states(domain)
    return [said for path in noted.new_files if (said := await _removed(path))]


async def remove_unowned(noted: Restoring, domain: Domain, connection: Connection) -> list[str]:
    """The same by another process, of what no domain of this host has.

    Args:
        noted: What was not there before.
        domain: The domain, which has ended.
        connection: To this host's libvirtd.

    Raises:
        LostError, RefusedError: What domains there are is not known; nothing was removed.
        HypervisorError: The TPM's state is left.
    """
    states = states_of(domain)
    tpm = noted.tpm_is_new and await in_thread(os.path.lexists, states)
    files = [path for path in noted.new_files if await in_thread(os.path.lexists, path)]
    if not tpm and not files:
        return []
    others = await _others(connection)
    left: list[str] = []
    if tpm and any(one.uuid == str(domain.uuid) for one in others):
        left.append(
            f"the TPM's state in {states} was made for the restore, and is left, for {domain.name}"
            f" is defined here, and may have been started since (if it was not, rm -r {states})"
        )
    elif tpm:
        await erase_states(domain)
    for path in files:
        owners = [one.name for one in others if path in one.says]
        if owners:
            left.append(
                f"{path} was made for the restore, or since then for {owners[0]}, which has it"
                f" now: it is left (move it away, if {owners[0]} is to begin with a new one)"
            )
        elif said := await _removed(path):
            left.append(said)
    return left


async def _removed(path: str) -> str:
    """Remove a file; why it is left, a sentence, or nothing."""
    try:
        await in_thread(Path(path).unlink, missing_ok=True)
    except OSError as error:
        return f"{path}, which was made for the restore, is left: {plain_words(error)} (rm {path})"
    return ""


async def _others(connection: Connection) -> list[_Other]:
    """The domains of this host; not one that libvirt is just about to forget."""
    found: list[_Other] = []
    for raw in await ask(connection.raw.listAllDomains, 0):
        with contextlib.suppress(RefusedError):  # it is gone
            if one := await ask(_other, raw):
                found.append(one)
    return found


def _other(raw: Any) -> _Other | None:
    is_kept = bool(raw.isPersistent())
    if not is_kept and not raw.isActive():
        return None
    texts = [raw.XMLDesc(0), *([raw.XMLDesc(XML_INACTIVE)] if is_kept else [])]
    name = str(raw.name())
    says = frozenset(word for text in texts for word in _words(text))
    return _Other(name, str(raw.UUIDString()), says | {variables_of_name(name)})


def _words(text: str) -> Iterator[str]:
    for element in parse(text).iter():
        yield from element.attrib.values()
        yield (element.text or "").strip()

"""What libvirt and QEMU have made for a restore that never ran, and leave when it ends.

What was not there before is in the restore's notes, which are written before libvirt is asked. Who
has asked libvirt removes that. Another process, after a crash, removes it only where it has found
the machine as it was restored from a file, and ended it: else its guest may have run since, and
what it has written is in there. What a domain of this host has by now, or another host may have,
stays as well. What stays is named.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from entourage.domain import Domain
from entourage.errors import plain_words
from entourage.hosts.threads import in_thread
from entourage.hypervisors.files import is_on_local_storage
from entourage.hypervisors.libvirt.another import variables_of_name
from entourage.hypervisors.libvirt.connection import Connection, RefusedError, ask
from entourage.hypervisors.libvirt.constants import NO_DOMAIN, XML_INACTIVE
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.restoring_notes import Restoring
from entourage.hypervisors.libvirt.tpm import erase_states, states_of


class _Other(NamedTuple):
    """A domain that there is: its name and UUID, and the files that its XML names.

    Of the XML that it runs with, and of what is kept; paths without links.
    """

    name: str
    uuid: str
    files: frozenset[str]


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


async def remove_unowned(
    noted: Restoring, domain: Domain, connection: Connection, *, never_ran: bool
) -> list[str]:
    """The same by another process, of what nobody else has.

    Args:
        noted: What was not there before.
        domain: The domain, which has ended.
        connection: To this host's libvirtd.
        never_ran: Its guest has provably never run; else what it has written may be in there.

    Raises:
        LostError, RefusedError: What domains there are is not known; nothing was removed.
        HypervisorError: The TPM's state is left.
    """
    states = states_of(domain)
    tpm = noted.tpm_is_new and await in_thread(os.path.lexists, states)
    made = dict.fromkeys(noted.new_files)  # a log may be named twice
    files = [path for path in made if await in_thread(os.path.lexists, path)]
    if not tpm and not files:
        return []
    others = await _others(connection)
    left: list[str] = []
    unsure: list[str] = []
    for path in files:
        real = await in_thread(os.path.realpath, path)
        owners = [one.name for one in others if real in one.files]
        if owners:
            left.append(
                f"{path} was made for the restore, or since then for {owners[0]}, which has it"
                f" now: it is left (move it away, if {owners[0]} is to begin with a new one)"
            )
        elif not await in_thread(is_on_local_storage, Path(path)):
            left.append(
                f"{path} was made for the restore, and is left: another host sees it as well, and"
                f" may have a domain with it (if none has, rm {shlex.quote(path)})"
            )
        elif not never_ran:
            unsure.append(path)
        elif said := await _removed(path):
            left.append(said)
    if tpm and any(one.uuid == str(domain.uuid) for one in others):
        left.append(
            f"the TPM's state in {states} was made for the restore, and is left, for {domain.name}"
            f" is defined here, and may have been started since (if it was not, rm -r {states})"
        )
    elif tpm and not never_ran:
        unsure.append(str(states))
    elif tpm:
        await erase_states(domain)
    if unsure:
        left.append(
            f"{' and '.join(unsure)} may be of the restore of {domain.name}, whose guest"
            " somebody may have let run meanwhile: left (if nobody has,"
            f" rm -r {' '.join(map(shlex.quote, unsure))})"
        )
    return left


async def _removed(path: str) -> str:
    """Remove a file; why it is left, a sentence, or nothing."""
    try:
        await in_thread(Path(path).unlink, missing_ok=True)
    except OSError as error:
        why = plain_words(error)
        return f"{path}, which was made for the restore, is left: {why} (rm {shlex.quote(path)})"
    return ""


async def _others(connection: Connection) -> list[_Other]:
    """The domains of this host; not one that libvirt is just about to forget."""
    found: list[_Other] = []
    for raw in await ask(connection.raw.listAllDomains, 0):
        try:
            if one := await ask(_other, raw):
                found.append(one)
        except RefusedError as error:
            if error.code != NO_DOMAIN:  # else it is gone
                raise
    return found


def _other(raw: Any) -> _Other | None:
    is_kept = bool(raw.isPersistent())
    if not is_kept and not raw.isActive():
        return None
    texts = [raw.XMLDesc(0), *([raw.XMLDesc(XML_INACTIVE)] if is_kept else [])]
    name = str(raw.name())
    paths = {word for text in texts for word in _words(text) if word.startswith("/")}
    files = map(os.path.realpath, {*paths, variables_of_name(name)})
    return _Other(name, str(raw.UUIDString()), frozenset(files))


def _words(text: str) -> Iterator[str]:
    for element in parse(text).iter():
        yield from element.attrib.values()
        yield (element.text or "").strip()

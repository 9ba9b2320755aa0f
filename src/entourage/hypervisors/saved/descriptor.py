"""What the backend of saved machines says of itself. Imports nothing of it before it is opened.

A save is called by its directory, ``save:/backup/web1``. It is no host's hypervisor: a process of
this host keeps its half of the record (``hosts/proxy_agent.py``). Another machine that is made of
it is of ``another:UUID/NAME/backup/web1``: the name alone says which, whoever takes it up.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

from entourage.hypervisors.backend import Backend, Elsewhere

if TYPE_CHECKING:
    from entourage.hypervisors.base import Hypervisor
    from entourage.settings.model import Settings

_SCHEME = "save:"
_ANOTHER = "another:"
_RESTORED_BY = "qemu"
_HERE = "127.0.0.1"


class Identity(NamedTuple):
    """What another machine is, that is made of a save.

    Attributes:
        uuid: Its own.
        name: The same.
    """

    uuid: str
    name: str


def another_name(directory: str, identity: Identity) -> str:
    """The name of the hypervisor that a save is, of which another machine is made."""
    return f"{_ANOTHER}{identity.uuid}/{identity.name}{directory}"


def _read(name: str) -> tuple[str, Identity | None]:
    """The directory, and who is made of what is saved there; no directory for another name."""
    if name.startswith(_SCHEME):
        return name.removeprefix(_SCHEME), None
    uuid, _, rest = name.removeprefix(_ANOTHER).partition("/")
    who, slash, directory = rest.partition("/")
    if not name.startswith(_ANOTHER) or not slash:
        return "", None
    return f"/{directory}", Identity(uuid, who)


def save_name(directory: str) -> str:
    """The name of the hypervisor that a save in this directory is."""
    return f"{_SCHEME}{directory}"


def _open(settings: Settings, name: str) -> Hypervisor:
    from entourage.hypervisors.saved.hypervisor import SavedHypervisor  # noqa: PLC0415

    return SavedHypervisor(settings, *_read(name))


def _elsewhere(name: str) -> Elsewhere | None:
    directory, _ = _read(name)
    return Elsewhere(uri=directory, address=_HERE, is_host=False) if directory else None


def _restore(name: str, domain: str) -> str:
    directory, another = _read(name)
    # Which disks and bridges it was to have is not in the name.
    as_another = f"--as {shlex.quote(domain)} --disk … --net … " if another else ""
    return f"entourage restore {as_another}{shlex.quote(directory)}"


BACKEND = Backend(
    kind="saved machines",
    names=f"{_SCHEME}DIRECTORY",
    usual=_SCHEME,
    answers_to=lambda name: name.startswith((_SCHEME, _ANOTHER)),
    is_here=lambda: False,  # it has no domains of its own
    open=_open,
    counterpart=lambda _name, wanted: wanted or _RESTORED_BY,
    start_command=_restore,
    name_elsewhere=lambda uri: uri,
    elsewhere=_elsewhere,
)

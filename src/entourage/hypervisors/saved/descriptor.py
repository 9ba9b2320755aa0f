"""What the backend of saved machines says of itself. Imports nothing of it before it is opened.

A save is called by its directory, ``save:/backup/web1``. It is no host's hypervisor: a process of
this host keeps its half of the record (``hosts/proxy_agent.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from entourage.hypervisors.backend import Backend, Elsewhere

if TYPE_CHECKING:
    from entourage.hypervisors.base import Hypervisor
    from entourage.settings.model import Settings

_SCHEME = "save:"
_RESTORED_BY = "qemu"
_HERE = "127.0.0.1"


def save_name(directory: str) -> str:
    """The name of the hypervisor that a save in this directory is."""
    return f"{_SCHEME}{directory}"


def _open(settings: Settings, name: str) -> Hypervisor:
    from entourage.hypervisors.saved.hypervisor import SavedHypervisor  # noqa: PLC0415

    return SavedHypervisor(settings, name.removeprefix(_SCHEME))


def _elsewhere(name: str) -> Elsewhere | None:
    directory = name.removeprefix(_SCHEME)
    return Elsewhere(uri=directory, address=_HERE, is_host=False) if directory != name else None


def _restore(name: str, _domain: str) -> str:
    return f"entourage restore {name.removeprefix(_SCHEME)}"


BACKEND = Backend(
    kind="saved machines",
    names=f"{_SCHEME}DIRECTORY",
    usual=_SCHEME,
    answers_to=lambda name: name.startswith(_SCHEME),
    is_here=lambda: False,  # it has no domains of its own
    open=_open,
    counterpart=lambda _name, wanted: wanted or _RESTORED_BY,
    start_command=_restore,
    name_elsewhere=lambda uri: uri,
    elsewhere=_elsewhere,
)

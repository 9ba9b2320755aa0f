"""What libvirt's backend says of itself. Imports nothing of it before it is opened."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from entourage.hypervisors.backend import Backend, Saves
from entourage.hypervisors.libvirt import uri

if TYPE_CHECKING:
    from entourage.hypervisors.base import Hypervisor
    from entourage.settings.model import Settings

USUAL = "qemu:///system"
_SESSION = "qemu:///session"
_RUN = Path("/run/libvirt")
_SOCKETS = ("libvirt-sock", "virtqemud-sock")
"""Of libvirtd, and of the daemon for QEMU where each driver has one of its own."""


def _is_here() -> bool:
    """Whether this host has a libvirtd, and libvirt's Python module."""
    return _listens_in(_RUN)


def _session_is_here() -> bool:
    """The same of the libvirtd that whoever runs Entourage has for itself alone."""
    run = os.environ.get("XDG_RUNTIME_DIR", "")
    return _listens_in(Path(run) if run else Path.home() / ".cache")


def _listens_in(directory: Path) -> bool:
    own = directory if directory == _RUN else directory / "libvirt"
    there = any((own / name).exists() for name in _SOCKETS)
    return there and importlib.util.find_spec("libvirt") is not None


def _is_session(name: str) -> bool:
    return name == _SESSION


def _session_there(_name: str, wanted: str | None) -> str:
    return wanted or _SESSION


def _no_uri(_text: str) -> None:
    """Targets are the other backend's."""


def _open(settings: Settings, name: str) -> Hypervisor:
    if uri.elsewhere(name) is not None:
        from entourage.hypervisors.libvirt.agentless import AgentlessHypervisor  # noqa: PLC0415

        return AgentlessHypervisor(settings, name)
    from entourage.hypervisors.libvirt.hypervisor import LibvirtHypervisor  # noqa: PLC0415

    return LibvirtHypervisor(settings, name)


def _start_command(name: str, domain: str) -> str:
    tool = "entourage" if uri.elsewhere(name) is None else "virsh"
    return f"{tool} start {domain}"


BACKEND = Backend(
    kind="libvirt",
    names=f"URIs as {USUAL}",
    usual=USUAL,
    answers_to=lambda name: ":" in name,
    is_here=_is_here,
    open=_open,
    counterpart=lambda _name, wanted: wanted or USUAL,
    start_command=_start_command,
    console_command=lambda name, domain: f"virsh -c {name} console {domain}",
    delete_hint=lambda name, domain: f"`virsh -c {name} undefine {domain}`, once it is shut off",
    resume_hint=lambda name, domain: f"`virsh -c {name} resume {domain}`",
    destination=uri.destination,
    name_elsewhere=uri.agentless_name,
    elsewhere=uri.elsewhere,
    same_as=uri.same_as,
    saves_by="",
    saves=Saves(
        checkpoints=True,
        non_live=True,
        copies=True,
        another=True,
        paused=True,
        since=True,
        stays_paused=True,
    ),
    sends=Saves(
        checkpoints=True,
        live=True,
        non_live=True,
        copies=True,
        filters=True,
        elsewhere=True,
        paused=True,
        since=True,
        copies_stop=True,
    ),
)
SESSION = dataclasses.replace(
    BACKEND,
    kind="libvirt session",
    names=_SESSION,
    usual=_SESSION,
    answers_to=_is_session,
    is_here=_session_is_here,
    counterpart=_session_there,
    saves_by="virsh save",
    saves=Saves(),
    sends=None,
    destination=_no_uri,
)

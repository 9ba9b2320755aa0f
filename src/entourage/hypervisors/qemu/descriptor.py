"""What QEMU's backend says of itself. Imports nothing of it before it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from entourage.hypervisors.backend import Backend, Saves

if TYPE_CHECKING:
    from entourage.hypervisors.base import Hypervisor
    from entourage.settings.model import Settings

_NAME = "qemu"


def _open(settings: Settings, _name: str) -> Hypervisor:
    from entourage.hypervisors.qemu.hypervisor import QemuHypervisor  # noqa: PLC0415

    return QemuHypervisor(settings)


def _delete_hint(_name: str, domain: str) -> str:
    """Its files go back to whom they belonged first."""
    return f"`entourage stop {domain}`, then move its directory beneath paths.state away"


def _resume_hint(_name: str, domain: str) -> str:
    return f"say `cont` to the QEMU of {domain}, at info.sock of its directory beneath paths.run"


BACKEND = Backend(
    kind="QEMU",
    names=_NAME,
    usual=_NAME,
    answers_to=lambda name: name == _NAME,
    is_here=lambda: True,  # what is missing is said when a domain is to be started
    open=_open,
    delete_hint=_delete_hint,
    resume_hint=_resume_hint,
    ours_alone=True,
    must_answer=True,
    starts_files=True,
    saves_by="",
    saves=Saves(
        checkpoints=True,
        live=True,
        non_live=True,
        copies=True,
        filters=True,
        elsewhere=True,
        another=True,
        paused=True,
        since=True,
        stays_paused=True,
    ),
)

"""What each backend has or has not; and that what it has not is not there at all."""

from __future__ import annotations

from typing import Any

import pytest

from entourage.hypervisors.libvirt.agentless import AgentlessIncoming
from entourage.hypervisors.libvirt.incoming import LibvirtIncoming
from entourage.hypervisors.libvirt.machine import LibvirtMachine
from entourage.hypervisors.qemu.incoming import QemuIncoming
from entourage.hypervisors.qemu.machine import QemuMachine
from entourage.hypervisors.saved.incoming import SavingIncoming
from entourage.hypervisors.saved.machine import SavedMachine
from entourage.hypervisors.seams import IncomingSeams, MachineSeams
from entourage.hypervisors.xen.incoming import XenIncoming
from entourage.hypervisors.xen.machine import XenMachine


def seams_of(seams: type[Any]) -> set[str]:
    """Return the names of its seams: what else it has are no parts, but answers."""
    return {name for name, value in vars(seams).items() if isinstance(value, property)}


def has(backend: type[Any], seams: type[Any]) -> set[str]:
    """Return the seams that a backend overrides."""
    return {name for name in seams_of(seams) if getattr(backend, name) is not getattr(seams, name)}


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        (QemuMachine, {"definition", "mirroring", "tpm", "announcing"}),
        (LibvirtMachine, {"definition", "carrying", "tpm", "announcing", "saving", "guest_agent"}),
        (
            XenMachine,
            {"definition", "carrying", "announcing", "unplugging", "saving", "after_abort"},
        ),
        (SavedMachine, {"mirroring", "tpm", "guest_agent"}),
    ],
)
def test_what_a_machine_has(backend: type[Any], expected: set[str]) -> None:
    assert has(backend, MachineSeams) == expected


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        (QemuIncoming, {"takes", "exports", "tpm", "announcing"}),
        (LibvirtIncoming, {"takes", "tpm", "announcing", "guest_agent"}),
        (AgentlessIncoming, {"takes", "tpm", "announcing", "agentless", "guest_agent"}),
        (XenIncoming, {"takes", "announcing", "plugging"}),
        (SavingIncoming, {"takes", "exports", "publishing", "tpm"}),
    ],
)
def test_what_a_machine_that_is_built_has(backend: type[Any], expected: set[str]) -> None:
    assert has(backend, IncomingSeams) == expected


def test_who_has_no_seams_has_nothing() -> None:
    for kind in (MachineSeams, IncomingSeams):
        names = seams_of(kind)
        assert names
        assert not any(getattr(kind(), name) for name in names)

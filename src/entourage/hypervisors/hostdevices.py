"""A host's own USB and PCI devices in a guest: taken out before it leaves, others plugged in there.

None of them can follow a guest, but where the user says which one of the target's stands for it, a
hypervisor with ``Capability.UNPLUG`` lets go of it in PREPARE and plugs that one in on arrival. Its
``Machine`` is then ``Unplugs``, its ``Incoming`` is ``Plugs``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from entourage.domain import Pci, Usb

HostDevice: TypeAlias = Usb | Pci
Objection: TypeAlias = tuple[str, str]
"""What is wrong, and what to do about it."""


@runtime_checkable
class Unplugs(Protocol):
    """What a ``Machine`` can do besides; every method raises HypervisorError where it fails."""

    async def test_unplug(self, device: HostDevice) -> Sequence[Objection]:
        """Why this device cannot be taken out of the running guest; touches nothing."""
        ...

    async def unplug(self, device: HostDevice) -> None:
        """Take it out, and return when the guest has let go; out already is no error."""
        ...

    async def plug(self, device: HostDevice) -> None:
        """Give the guest its device back; there already is no error.

        The error's remedy is what the user can type instead, on this host.
        """
        ...


@runtime_checkable
class Plugs(Protocol):
    """What an ``Incoming`` can do besides; every method raises HypervisorError where it fails."""

    async def test_plug(self, device: HostDevice) -> Sequence[Objection]:
        """Why ``device.plug`` of this host cannot be plugged into a guest; touches nothing."""
        ...

    async def plug(self, device: HostDevice) -> None:
        """The guest runs: plug ``device.plug`` of this host in; there already is no error.

        The error's remedy is what the user can type instead, on this host.
        """
        ...

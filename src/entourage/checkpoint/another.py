"""What must be so for another machine to be made of a save."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import msgspec

from entourage.checkpoint.where import is_device, real
from entourage.domain import Name, Net
from entourage.errors import UsageError
from entourage.hypervisors.registry import saves_of
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.descriptor import Identity

_OF_ITS_OWN = "user"
"""A type of NIC: QEMU itself translates its addresses, and nobody meets its MAC."""


def identity_of(manifest: manifests.Manifest, where: str, name: str) -> Identity:
    """Who another machine is.

    Raises:
        UsageError: It cannot be called so, or none can be made of this save.
    """
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise UsageError(f"{name!r} is no name of a domain", remedy="choose another") from error
    if name == manifest.domain.name:
        raise UsageError(
            f"{where} is a save of {name} itself", remedy="leave --as out, or choose another name"
        )
    if manifest.hypervisor and not saves_of(manifest.hypervisor, passed_on=manifest.sent).another:
        remedy = f"without --as it is {manifest.domain.name} itself that goes on"
        if manifest.sent and saves_of(manifest.hypervisor).another:
            remedy += (
                "; or make another of a save onto the same host, neither compressed nor encrypted"
            )
        raise UsageError(
            f"{where} was saved by {manifest.hypervisor}, and cannot be made another machine",
            remedy=remedy,
        )
    return Identity(str(uuid.uuid4()), name)


def check_another(
    manifest: manifests.Manifest,
    name: str,
    nets: Mapping[str, str],
    disks: Mapping[str, str],
) -> None:
    """Raises UsageError where another machine would have a place of the first one's."""
    first, labels = manifest.domain, manifest.copied
    for disk in first.block:
        if disk.label in labels and disk.id not in disks:
            raise UsageError(
                f"{disk.id} is a copy of {first.name}'s, and {name} needs a place of its own",
                remedy=f"--disk {disk.id}=/srv/{name}-{disk.id}, or where else it may lie",
            )
    own = {real(disk.path) for disk in first.block}
    for disk, path in disks.items():
        if real(path) in own:
            raise UsageError(
                f"{path} is a disk of {first.name}, and would be written over",
                remedy=f"--disk {disk}=PATH, another one",
            )
        if is_device(path):  # which may have been given to the first one since, here or elsewhere
            raise UsageError(
                f"{path} is a device, and whose it is cannot be told",
                remedy=f"--disk {disk}=/a/file, which is made",
            )
    places = {_network(nic) for nic in first.net}
    for nic in first.net:
        place = _network(nic)
        if nic.attach == "other" and place == _OF_ITS_OWN:
            continue
        if nic.attach == "other":
            raise UsageError(
                f"{nic.id} of {first.name} is of type {place}, and where that leads cannot be told",
                remedy=f"no other machine can be made of {first.name} while it has it",
            )
        if nets.get(place, place) in places:
            raise UsageError(
                f"the guest has the MAC of {first.name}'s {nic.id} in its memory until it is"
                f" started again, and would be on {place} with it",
                remedy=f"--net {place}=ANOTHER, one that {first.name} is not on",
            )


def _network(nic: Net) -> str:
    """What ``--net`` calls where a NIC is: a bridge, an interface, or a network of libvirt's."""
    return nic.network if nic.attach == "network" and nic.network else nic.bridge

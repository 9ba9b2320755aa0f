"""Forgetting a libvirt domain on a host that it has left: its definition, and what is this host's.

What both hosts may share is never deleted: the NVRAM file, with which the guest's firmware goes on
at the other host, and the TPM's state where its directory is on storage that others can mount.
"""

from __future__ import annotations

from typing import Any

from entourage.errors import HypervisorError
from entourage.hosts.threads import in_thread
from entourage.hypervisors.files import is_on_local_storage
from entourage.hypervisors.libvirt.connection import RefusedError, ask
from entourage.hypervisors.libvirt.tpm import STATES

# virDomainUndefineFlagsValues: managed save, the metadata of snapshots and of checkpoints, and
# that NVRAM stays; those of TPM state came with libvirt 8.9, and older ones refuse the unknown.
_ALWAYS = 1 << 0 | 1 << 1 | 1 << 4
_KEEP_NVRAM = 1 << 3
_TPM, _KEEP_TPM = 1 << 5, 1 << 6
KNOWS_TPM = 8_009_000


async def undefine(raw: Any, name: str, *, here: bool) -> None:
    """Forget a domain's definition; one that has none, or is gone, is no error.

    Args:
        raw: ``libvirt.virDomain``.
        name: The domain's.
        here: Whether it is one of this host, so that this host's storage can be looked at.

    Raises:
        HypervisorError: The definition is still there.
    """
    alone = here and await in_thread(is_on_local_storage, STATES)
    try:
        await ask(raw.undefineFlags, flags(await ask(_version, raw), tpm_is_alone=alone))
    except RefusedError as error:
        try:
            stays = bool(await ask(raw.isPersistent))
        except RefusedError:  # it is gone
            return
        if stays:
            raise HypervisorError(
                f"libvirt does not forget {name}: {error.message}",
                remedy=f"virsh undefine --keep-nvram {name}",
            ) from error


async def set_aside(raw: Any) -> None:
    """Forget the definition of a domain that is off, and nothing of what belongs to it."""
    keep = _KEEP_TPM if await ask(_version, raw) >= KNOWS_TPM else 0
    await ask(raw.undefineFlags, _KEEP_NVRAM | keep)


def flags(version: int, *, tpm_is_alone: bool) -> int:
    """What libvirt is told.

    Args:
        version: The daemon's, as ``virConnectGetLibVersion`` has it.
        tpm_is_alone: Whether no other host can see the TPM's state.
    """
    tpm = 0
    if version >= KNOWS_TPM:
        tpm = _TPM if tpm_is_alone else _KEEP_TPM
    return _ALWAYS | _KEEP_NVRAM | tpm


def _version(raw: Any) -> int:
    return int(raw.connect().getLibVersion())

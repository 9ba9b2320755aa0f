"""What is asked of a migration when a machine is saved or restored."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from entourage.admission import known
from entourage.checkpoint.another import check_another, identity_of
from entourage.checkpoint.disks import Disks
from entourage.checkpoint.where import absolute_place, is_device, real
from entourage.devices.base import Options
from entourage.domain import Block, Domain
from entourage.errors import UsageError
from entourage.hosts.filters import (
    COMPRESS,
    ENCRYPT,
    Filter,
    absolute,
    check,
    check_key,
    check_recipient,
)
from entourage.hosts.proxy_agent import THIS_HOST
from entourage.hosts.route import Route, checked_host_of, host_of
from entourage.hosts.threads import in_thread
from entourage.hypervisors.registry import is_here, saves_by, saves_of, usual
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.descriptor import another_name, save_name
from entourage.hypervisors.saved.lineage import since_of
from entourage.hypervisors.saved.manifest import copy_path
from entourage.hypervisors.saved.storage import Storage
from entourage.hypervisors.values import Since
from entourage.settings.model import Settings
from entourage.source.request import Request

_LOOPBACK = "127.0.0.1"  # where nothing goes: memory stays on this host


async def save_request(
    settings: Settings,
    name: str,
    directory: str,
    *,
    checkpoint: bool = False,
    disks: Disks | None = None,
    allow_tpm_rollback: bool = False,
    live: bool = True,
    stays_paused: bool = False,
    compress: bool = False,
    encrypt: str | None = None,
    since: str | None = None,
    tool: str | None = None,
    dry_run: bool = False,
) -> Request:
    """To save a domain of this host.

    Args:
        settings: This host's.
        name: The domain's.
        directory: Where to; ``HOST:/DIRECTORY`` on another host.
        checkpoint: The guest goes on here.
        disks: What becomes of its disks; None: a checkpoint copies them, else they stay.
        allow_tpm_rollback: Its user accepts that a TPM goes back when a checkpoint is restored.
        live: The guest of a checkpoint runs while its memory is copied.
        stays_paused: The guest of a checkpoint does not run on.
        compress: Memory goes through zstd.
        encrypt: An age recipient, or a file of recipients, to whom memory is encrypted.
        since: The directory of a checkpoint: of disks only what was written since is copied.
        tool: An external tool for every class.
        dry_run: TEST only.

    Raises:
        UsageError: There is no such domain, or it cannot be saved so.
        HypervisorError: The storage does not answer.
    """
    hypervisor, domain = await known(settings, name)
    if instead := saves_by(hypervisor.name):
        raise UsageError(
            f"{name} is a domain of {hypervisor.name}, and none of those is saved",
            remedy=f"`{instead}` saves its memory, but not what is attached to it",
        )
    passed_on = bool(compress or encrypt or host_of(directory))
    can = saves_of(hypervisor.name, passed_on=passed_on)
    anyhow = saves_of(hypervisor.name)
    asked_for = (
        (checkpoint and not can.checkpoints, "a checkpoint", "save it without --checkpoint"),
        (
            stays_paused and not can.stays_paused,
            "a checkpoint that leaves its guest paused",
            "leave --paused out, or save it onto this host, as it is",
        ),
        (checkpoint and not live and not can.non_live, "non-live", "leave --non-live out"),
        (
            disks is Disks.COPY and not can.copies,
            "with copies of its disks",
            "--disks=reference, and a snapshot that the storage makes",
        ),
        (
            bool(compress or encrypt) and not can.filters,
            "compressed or encrypted",
            "save it onto storage that does that",
        ),
        (
            bool(host_of(directory)) and not can.elsewhere,
            "on another host",
            "mount that host's storage here, and name its directory",
        ),
        (
            bool(since) and not can.since,
            "of changes alone" + (f": {can.never_since}" if can.never_since else ""),
            "leave --since out",
        ),
    )
    for impossible, what, remedy in asked_for:
        if impossible:
            how = ", compressed, encrypted or on another host," if can is not anyhow else ""
            raise UsageError(
                f"{name} is a domain of {hypervisor.name}, whose save{how} cannot be {what}",
                remedy=remedy,
            )
    copies = (checkpoint and can.copies) or since is not None
    disks = disks or (Disks.COPY if copies else Disks.KEEP)
    if since is not None and disks is not Disks.COPY:
        raise UsageError(
            f"--since is of disks that are copied, and --disks={disks} copies none",
            remedy="leave one of the two out",
        )
    written = [disk for disk in domain.block if not disk.is_only_read]
    if checkpoint:
        _check_checkpoint(
            domain, written, disks, allow_tpm_rollback=allow_tpm_rollback, copies=can.copies
        )
    through = (
        *((Filter(COMPRESS),) if compress else ()),
        *((Filter(ENCRYPT, absolute(encrypt)),) if encrypt else ()),
    )
    if encrypt == "":
        raise UsageError("--encrypt names nobody", remedy="an age recipient, or a file of them")
    await in_thread(check, through)
    if encrypt:
        await check_recipient(through[-1])
    if encrypt and disks is Disks.COPY and written:
        raise UsageError(
            "copies of disks are not encrypted, and have what the guest has written",
            remedy="--disks=reference, or without --encrypt onto storage that encrypts",
        )
    far = checked_host_of(directory)
    if far:
        where = directory[len(far) + 1 :]
        _check_far(where)
    else:
        where = await Storage(Path(directory), name).do(absolute_place, directory)
    place = f"{far}:{where}" if far else where
    earlier = None
    if since is not None:
        if far:
            raise UsageError(
                f"--since is of a save on this host, and this one is to be on {far}",
                remedy="mount that host's storage here; or leave --since out",
            )
        earlier = await Storage(Path(since), name).do(_since, since, domain)
    copied = written if disks is Disks.COPY else []
    return Request(
        domain=name,
        route=Route(host=place, agentless=save_name(where), by_ssh="no"),
        connect=hypervisor.name,
        settings=_here(settings),
        options=Options(
            disks={disk.id: str(copy_path(Path(where), disk)) for disk in copied},
            copies=frozenset(disk.id for disk in copied),
            sealed=disks is not Disks.REFERENCE,
            checkpoint=checkpoint,
            stays_paused=stays_paused,
            keep_source_disks=True,
            filters=through,
            mark=_new_mark() if checkpoint and can.since and copied else "",
            since=earlier,
        ),
        live=live and checkpoint and can.live and not (copied and can.copies_stop),
        tool=tool,
        dry_run=dry_run,
    )


def _since(directory: str, domain: Domain) -> Since:
    """The checkpoint of this domain in a directory; raises UsageError. Blocks."""
    place = real(directory)
    since, manifest = since_of(place)
    if manifest.domain.uuid != domain.uuid:
        raise UsageError(
            f"{place} is a checkpoint of {manifest.domain.name} ({manifest.domain.uuid}),"
            f" and not of {domain.name}",
            remedy=f"name one of {domain.name}'s, or leave --since out",
        )
    return since


def _new_mark() -> str:
    """What the hypervisor's record of what is written from now on is called; they sort by time."""
    return f"entourage-{time.time_ns():020d}-{secrets.token_hex(4)}"


def _check_checkpoint(
    domain: Domain,
    written: Sequence[Block],
    disks: Disks,
    *,
    allow_tpm_rollback: bool,
    copies: bool,
) -> None:
    """Raises UsageError where a guest that goes on cannot be restored by what is saved of it."""
    if written and disks is Disks.KEEP:
        raise UsageError(
            f"{domain.name} goes on and writes to {', '.join(disk.label for disk in written)}:"
            " with its disks kept, the checkpoint could never be restored",
            remedy=("--disks=copy, or " if copies else "")
            + "--disks=reference if you keep them as they are at that moment"
            " (a snapshot of the storage)",
        )
    if domain.tpm and not allow_tpm_rollback:
        raise UsageError(
            f"{domain.name} has a TPM, which would go back with the checkpoint: what must"
            " never go back in it does (bad PINs that were counted, versions that were revoked)",
            remedy="--allow-tpm-rollback, if its guest relies on no such thing",
        )


async def restore_request(
    settings: Settings,
    directory: str,
    *,
    paused: bool = False,
    only_copy: bool = False,
    revert: bool = False,
    identity: str = "",
    another: str = "",
    nets: Mapping[str, str] | None = None,
    disks: Mapping[str, str] | None = None,
    tool: str | None = None,
    dry_run: bool = False,
) -> Request:
    """To restore a saved machine on this host.

    Args:
        settings: This host's.
        directory: Where it is saved.
        paused: The guest is not to run at once.
        only_copy: The user vouches that this copy of the directory is the only one restored.
        revert: The user vouches that the machine of this checkpoint runs nowhere, and gives up
            what it did since.
        identity: The file of age identities by which memory is decrypted.
        another: The name of another machine that is made of it; empty: it is restored itself.
        nets: Other bridges, by those that it had.
        disks: Where disks that were copied are written to, by their ids.
        tool: An external tool for every class.
        dry_run: TEST only.

    Raises:
        UsageError: There is no save, it is a copy of one, or a checkpoint; or no other machine can
            be made of it.
        HypervisorError: The storage does not answer.
    """
    storage = Storage(Path(directory), "")
    if (far := host_of(directory)) and not await storage.do(os.path.exists, directory):
        raise UsageError(
            f"{directory} is on {far}, and a save is restored on the host that it is on",
            remedy=f"there: entourage restore {directory[len(far) + 1 :]}",
        )
    where = await storage.do(absolute_place, directory)
    manifest = await storage.do(manifests.read_manifest, Path(where))
    name = manifest.domain.name
    connect = save_name(where)
    if another:
        if revert or only_copy:
            raise UsageError(
                "--revert and --only-copy are of the machine itself, not of another one (--as)",
                remedy="leave them out",
            )
        connect = another_name(where, identity_of(manifest, where, another))
        await storage.do(check_another, manifest, another, nets or {}, disks or {})
        name = another
    elif manifest.checkpoint and not revert:
        raise UsageError(
            f"{where} is a checkpoint: {name} went on after it, on {manifest.host}",
            remedy="if it is off, wherever it has gone, and what it did since is to be given up:"
            " --revert",
        )
    if revert and not manifest.checkpoint:
        raise UsageError(
            f"{where} is no checkpoint: {name} ended as it was saved", remedy="leave --revert out"
        )
    here = manifest.hypervisor
    if paused and here and not saves_of(here, passed_on=manifest.sent).paused:
        raise UsageError(
            f"{where} was saved by {manifest.hypervisor}, which does not leave it paused",
            remedy="leave --paused out",
        )
    is_copy = await storage.do(manifests.is_copy, Path(where), manifest)
    if not (another or manifest.checkpoint or only_copy) and is_copy:
        raise UsageError(
            f"{where} is a copy of what was saved on {manifest.host}: whether that was restored"
            " already, or another copy, cannot be seen from here",
            remedy="if it was not, and will not be: --only-copy",
        )
    through = tuple(
        Filter(one, absolute(identity) if one == ENCRYPT else "") for one in manifest.filters
    )
    await in_thread(check, through)
    if ENCRYPT in manifest.filters and not identity:
        raise UsageError(f"{where} is encrypted", remedy="--identity FILE, an age identity")
    if through and through[-1].name == ENCRYPT:
        await check_key(through[-1], Path(where, manifests.MEMORY))
    places = await storage.do(_places, manifest, disks or {})
    # What it finds here would be written over before it is known to be worth that.
    written_over = bool(manifest.hypervisor and manifest.domain.tpm) or await storage.do(
        lambda: any(map(is_device, places.values()))
    )
    return Request(
        domain=name,
        route=Route(host=THIS_HOST, there=_restored_by(where, manifest.hypervisor)),
        connect=connect,
        settings=_here(settings),
        options=Options(
            nets=dict(nets or {}),
            disks=places,
            copies=frozenset(places),
            revert=revert,
            keep_source_disks=True,
            filters=through,
        ),
        live=False,
        tool=tool,
        dry_run=dry_run,
        examine=written_over,
        paused=paused,
    )


def _places(manifest: manifests.Manifest, wanted: Mapping[str, str]) -> dict[str, str]:
    """Where each disk that was copied is written to: where it was, or where its user wants it."""
    labels = manifest.copied
    were = {disk.id: disk.path for disk in manifest.domain.block if disk.label in labels}
    for disk in wanted:
        if disk not in were:
            raise UsageError(
                f"--disk {disk}=…: no such disk was copied into the save",
                remedy=f"it has: {', '.join(sorted(were)) or 'none'}",
            )
    for disk, path in were.items():
        if disk not in wanted and is_device(path):
            raise UsageError(
                f"{disk} was the device {path}, and would be written over",
                remedy=f"--disk {disk}={path} does so, --disk {disk}=/a/file makes a file of it",
            )
    return were | {disk: str(Path(path).absolute()) for disk, path in wanted.items()}


def _check_far(directory: str) -> None:
    """Raises UsageError where a path on another host cannot be a save's."""
    path = Path(directory)
    if path.name in {"", ".."} or ".." in path.parts or not directory.isprintable():
        raise UsageError(f"{directory!r} is no directory to save in", remedy="name one to be made")


def _restored_by(where: str, hypervisor: str) -> str | None:
    """The hypervisor that restores a save, where it is another than that of Entourage's own.

    Raises:
        UsageError: It is none of this host's, which are called as everywhere.
    """
    if hypervisor and (
        saves_by(hypervisor) or usual(hypervisor) != hypervisor or not is_here(hypervisor)
    ):
        raise UsageError(
            f"{where} was saved by {hypervisor}, which is no hypervisor of this host",
            remedy="restore it where there is one",
        )
    return hypervisor or None


def _here(settings: Settings) -> Settings:
    """Nothing travels."""
    migration = msgspec.structs.replace(settings.migration, data_address=_LOOPBACK, tls=False)
    return msgspec.structs.replace(settings, migration=migration)

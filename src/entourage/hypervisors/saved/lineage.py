"""Checkpoints that another save has only the changes since of: its images are built on theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from entourage.errors import UsageError, plain_words, what_to_do
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.manifest import Manifest, SavedFile, copy_path
from entourage.hypervisors.values import Since

_LONGEST = 64
"""Saves of which each may be built on the one before: all are read for every block of the last."""
_REMEDY = "put it back as it was, and where it was; else restore one that is a checkpoint of all"


class Below(NamedTuple):
    """An image that a disk's in a later save is built on.

    Attributes:
        label: The disk's.
        directory: The save's.
        path: Where it is.
        file: What it was when it was saved.
    """

    label: str
    directory: Path
    path: Path
    file: SavedFile


def since_of(directory: Path) -> tuple[Since, Manifest]:
    """What another save has to know of a checkpoint to have only the changes since. Blocks.

    Args:
        directory: Where the checkpoint is; without links, as its images are named by it.

    Raises:
        UsageError: There is none, it cannot be read, or no record was begun with it.
    """
    manifest, digest = manifests.read_manifest(directory), _digest(directory)
    if not manifest.checkpoint or not manifest.mark or not manifest.copies:
        raise UsageError(
            f"{directory} is no checkpoint with copies of disks",
            remedy="name one that `entourage save --checkpoint` has made of this machine",
        )
    ids = {manifest.domain.device(copy.device).id: copy.format for copy in manifest.copies}
    since = Since(directory=str(directory), sha256=digest, mark=manifest.mark, images=ids)
    if len({below.directory for below in lineage(directory, manifest)}) + 1 >= _LONGEST:
        raise UsageError(
            f"{directory} is the last of {_LONGEST} saves that are built on one another",
            remedy="leave --since out: a checkpoint of all of it",
        )
    return since, manifest


def lineage(directory: Path, manifest: Manifest) -> list[Below]:
    """The images that a save's are built on, all the way down; whether they are whole is not seen.

    Blocks.

    Raises:
        UsageError: One of these saves is not there, or is another one now.
    """
    return list(_lineage(directory, manifest))


def _lineage(directory: Path, manifest: Manifest) -> Iterator[Below]:
    ids = {manifest.domain.device(copy.device).id for copy in manifest.copies}
    for _ in range(_LONGEST):
        since = manifest.since
        if since is None or not (ids := ids & since.images.keys()):
            return
        above, directory = directory, Path(since.directory)
        try:
            manifest, digest = manifests.read_manifest(directory), _digest(directory)
        except UsageError as error:
            raise UsageError(
                f"{above} has only what has changed since {directory}: {error.message}",
                remedy=_REMEDY,
            ) from error
        copies = {manifest.domain.device(copy.device).id: copy for copy in manifest.copies}
        if digest != since.sha256 or ids - copies.keys():
            raise UsageError(
                f"{above} has only what has changed since {directory}, which is another save now",
                remedy=_REMEDY,
            )
        for disk in manifest.domain.block:
            if disk.id in ids:
                path = copy_path(directory, disk)
                yield Below(disk.label, directory, path, copies[disk.id].file)
    raise UsageError(f"{directory} is built on too many others", remedy=_REMEDY)


def _digest(directory: Path) -> str:
    try:
        text = manifests.text_of(directory)
    except OSError as error:
        raise UsageError(plain_words(error), remedy=what_to_do(error)) from error
    return hashlib.sha256(text).hexdigest()

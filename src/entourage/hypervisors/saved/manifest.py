"""What a save consists of, as it is written in its directory, in ``manifest.json``.

Of format 2 is one that has only what was written to its disks since another save (``since``), or
whose memory is what a hypervisor sends (``sent``).

::

    DIR/                 0700, and everything in it 0600
        manifest.json    written last; without it there is no save
        memory           QEMU's stream: memory, CPUs, devices, and the TPM's state
        disks/ID         a disk that was copied, by its id: in its own format; or what was written
                         to it since another save, a qcow2 image built on that one's
        claim.json       who restores it, or has restored it; not there where nobody does

While it is being made, the directory is called ``DIR.UUID.partial``, with the domain's UUID.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from entourage import durable
from entourage.domain import Block, Domain
from entourage.errors import HypervisorError, UsageError, plain_words, what_to_do
from entourage.hosts.digests import NICE, GrowingDigest, sha256
from entourage.hosts.threads import in_thread
from entourage.hypervisors.saved.seals import Seal
from entourage.hypervisors.values import Since, TpmFacts

FORMAT = 2
"""What is read here; written is the oldest that says all that there is to be said."""
_ALL_OF_IT = 1
MEMORY = "memory"
DISKS = "disks"
_MANIFEST = "manifest.json"
PARTIAL = ".partial"
_LARGEST = 16 << 20
_OTHERS_WRITE = 0o022
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Sha256: TypeAlias = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]


class SavedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the save.

    Attributes:
        size: Bytes.
        sha256: Of its content, in hexadecimal digits.
        inode, changed: The inode's number and its change time (ns since the epoch). A copy of the
            directory has others.
    """

    size: _Count
    sha256: _Sha256
    inode: int
    changed: int


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """A disk that was copied into the save, as of the moment of its memory.

    Attributes:
        device: Its label.
        format: ``raw`` or ``qcow2``; of an image that is built on another save's, ``qcow2``.
        file: ``disks/ID``.
        mode: The permissions that the image had.
        owner, group: Whose it was, by name; empty where that is not known.
    """

    device: str
    format: str
    file: SavedFile
    mode: Annotated[int, Meta(ge=0, le=0o777)] = 0o600
    owner: str = ""
    group: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A save.

    Attributes:
        format: Of these fields.
        entourage: The version that wrote it.
        made: When, ISO 8601 with an offset.
        host: On which host.
        generation: Of the domain, as the journals count it; a restore is newer.
        was_running: False where its user had paused the guest.
        domain: The running configuration.
        facts: What the hypervisor said of itself; compared with the one that restores it.
        hypervisor: The name of the one whose domain it is, and that restores it; empty where it is
            QEMU's stream, of one of Entourage's own machines.
        kept: What that one has said about it, in its own words.
        sent: Memory is what that one sends as a domain moves, and is sent to it again; else, where
            something is kept, it is a file of its own. Since format 2.
        tpm: What the TPM's emulator could do; None where there is none.
        memory: The file of that name.
        disks: The images of its disks, which stayed where they are.
        copies: The disks that were copied. Their paths in ``domain`` are where they were.
        filters: The programs that memory went through, the first of them first.
        checkpoint: The guest went on after it: restored, it goes back to what it was.
        mark: Of a checkpoint: what the hypervisor calls its record of what is written after it.
        since: What the images of disks that are named there are built on.
    """

    format: int
    entourage: str
    made: str
    host: str
    generation: _Count
    was_running: bool
    domain: Domain
    facts: dict[str, str]
    memory: SavedFile
    disks: tuple[Seal, ...] = ()
    copies: tuple[Copy, ...] = ()
    filters: tuple[str, ...] = ()
    checkpoint: bool = False
    tpm: TpmFacts | None = None
    hypervisor: str = ""
    kept: bytes = b""
    mark: str = ""
    since: Since | None = None
    sent: bool = False

    @property
    def is_written(self) -> bool:
        """Whether its hypervisor has written memory's file itself, and reads it itself."""
        return bool(self.kept) and not self.sent

    @property
    def copied(self) -> frozenset[str]:
        """The labels of the disks that were copied."""
        return frozenset(copy.device for copy in self.copies)

    @property
    def size(self) -> int:
        """Bytes of memory and of the copies of disks, as files."""
        return self.memory.size + sum(copy.file.size for copy in self.copies)


class _Format(msgspec.Struct):
    """What is looked at first."""

    format: int


def removed(domain: Domain) -> Manifest:
    """What stands for a save that its user has removed, where its restoring is to be settled."""
    nothing = SavedFile(size=0, sha256="", inode=0, changed=0)
    return Manifest(
        format=FORMAT,
        entourage="",
        made="",
        host="",
        generation=0,
        was_running=True,
        domain=domain,
        facts={},
        memory=nothing,
    )


def partial(directory: Path, domain: Domain) -> Path:
    """What a save's directory is called while it is being made: no other domain's is called so."""
    return directory.with_name(f"{directory.name}.{domain.uuid}{PARTIAL}")


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write it; it and the names beside it are on the disk when this returns. Blocks."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    durable.make(directory / _MANIFEST, text)


def read_manifest(directory: Path) -> Manifest:
    """Read it. Whoever could write to the directory could have any file opened as a disk.

    Raises:
        UsageError: There is no save, none that is understood, or others may write to it.
    """
    check_owners(directory)
    for path in (directory / _MANIFEST, directory / MEMORY):
        _check_owner(directory, path)
    try:
        manifest = _read(directory)
    except FileNotFoundError as error:
        raise _no_save(directory) from error
    except OSError as error:
        raise UsageError(plain_words(error), remedy=what_to_do(error)) from error
    for problem in _contradictions(manifest):
        raise UsageError(
            f"{directory / _MANIFEST} is no manifest of a save: {problem}",
            remedy="use another copy of the save, if there is one",
        )
    copied = manifest.copied
    for disk in manifest.domain.block:
        if disk.label in copied:
            _check_owner(directory, directory / DISKS)
            _check_owner(directory, copy_path(directory, disk))
    return manifest


def _read(directory: Path) -> Manifest:
    """Raises OSError, or UsageError where it is none that is understood."""
    path, text = directory / _MANIFEST, text_of(directory)
    try:
        said = msgspec.json.decode(text, type=_Format).format
        if said > FORMAT:
            raise UsageError(
                f"{directory} was saved by a newer Entourage (format {said})",
                remedy=f"this one reads formats up to {FORMAT}: upgrade it",
            )
        return msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged: {error}", remedy="use another copy of the save, if there is one"
        ) from error


def text_of(directory: Path) -> bytes:
    """A save's manifest, as it is written; raises OSError. Blocks."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(directory / _MANIFEST, flags)
    with open(handle, "rb") as file:  # noqa: PTH123 - no FIFO holds it up
        return file.read(_LARGEST)


def format_for(since: Since | None, *, sent: bool) -> int:
    """The oldest format that says all of a manifest."""
    return _ALL_OF_IT if since is None and not sent else FORMAT


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What no save has that was written here: a disk would be checked, or copied, as another."""
    if manifest.domain.uuid is None:
        yield "its domain has no UUID"
    labels = [device.label for device in manifest.domain.devices]
    if twice := {label for label in labels if labels.count(label) > 1}:
        yield f"its domain has {', '.join(sorted(twice))} twice"
    disks = {disk.label: disk for disk in manifest.domain.block}
    copied = [copy.device for copy in manifest.copies]
    sealed = [seal.device for seal in manifest.disks]
    if unknown := {*copied, *sealed} - disks.keys():
        yield f"its domain has no disk {', '.join(sorted(unknown))}"
        return
    if twice := {label for label in copied if copied.count(label) > 1}:
        yield f"{', '.join(sorted(twice))} was copied twice"
    if both := set(copied) & set(sealed):
        yield f"{', '.join(sorted(both))} was copied, and has stayed where it is"
    if manifest.sent and not (manifest.kept and manifest.hypervisor):
        yield "nothing is kept of the machine that its memory is of"
    for copy in manifest.copies:
        changes = manifest.since is not None and disks[copy.device].id in manifest.since.images
        if copy.format != (saved := "qcow2" if changes else disks[copy.device].format):
            yield f"{copy.device} is {saved}, and its copy {copy.format}"


def check_owners(directory: Path) -> None:
    """See that nobody but root can write to a directory, or put another one in its place.

    Raises:
        UsageError: Somebody can; or there is none.
    """
    _check_owner(directory, directory)
    for above in directory.parents:
        try:
            status = above.stat()
        except OSError as error:
            raise UsageError(plain_words(error), remedy=what_to_do(error)) from error
        replaceable = status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX
        if status.st_uid not in {0, os.geteuid()} or replaceable:
            raise UsageError(
                f"others than root may write to {above}, and could put another save there",
                remedy="use a directory that is root's all the way",
            )


def _check_owner(directory: Path, path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError as error:
        raise _no_save(directory) from error
    except OSError as error:
        raise UsageError(plain_words(error), remedy=what_to_do(error)) from error
    wanted = stat.S_ISDIR if path in {directory, directory / DISKS} else stat.S_ISREG
    if not wanted(status.st_mode):
        raise _no_save(directory)
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & _OTHERS_WRITE:
        raise UsageError(
            f"others than root may write to {path}, and could have changed the machine",
            remedy=f"if you trust its content: chown -R root {directory};"
            f" chmod -R go-w {directory}",
        )


def _no_save(directory: Path) -> UsageError:
    if any(directory.parent.glob(f"{glob.escape(directory.name)}.*{PARTIAL}")):
        return UsageError(
            f"{directory} is not saved whole",
            remedy="`entourage status` says whether it is under way; `entourage recover` ends it",
        )
    return UsageError(f"there is no save in {directory}", remedy="`entourage saved` lists them")


def is_save(directory: Path) -> bool:
    """Whether something was saved there, whatever has become of it."""
    return os.path.lexists(directory / _MANIFEST) and not directory.name.endswith(PARTIAL)


def is_of(directory: Path, domain: Domain, generation: int | None) -> bool:
    """Whether the save of this domain is there, whole. Blocks.

    Args:
        directory: Where.
        domain: The domain.
        generation: Of the save; None: any.

    Raises:
        HypervisorError: That cannot be seen.
    """
    try:
        found = _read(directory)
    except FileNotFoundError:
        return False
    except UsageError as error:
        raise HypervisorError(error.message, remedy=error.remedy) from error
    except OSError as error:
        raise HypervisorError(plain_words(error), remedy=what_to_do(error)) from error
    return found.domain.uuid == domain.uuid and generation in {None, found.generation}


async def measured(path: Path, growing: GrowingDigest | None = None) -> SavedFile:
    """What is recorded of a file that is whole.

    Args:
        path: The file.
        growing: Its digest, where that was made as it was written.

    Raises:
        HypervisorError, OSError: It cannot be read.
    """
    status = await in_thread(path.stat)
    digest = await (sha256(path) if growing is None else growing.finish(status.st_size))
    return SavedFile(
        size=status.st_size,
        sha256=digest,
        inode=status.st_ino,
        changed=status.st_ctime_ns,
    )


async def problem_of(path: Path, saved: SavedFile, *, nice: int = NICE) -> tuple[str, str] | None:
    """What is wrong with a file of a save, and what to do; None where it is what was saved.

    Args:
        path: The file.
        saved: What was saved.
        nice: How far the program that reads it stands back for others.
    """
    remedy = "use another copy of the save, if there is one"
    try:
        size = (await in_thread(path.lstat)).st_size
    except OSError as error:
        return plain_words(error), remedy
    if size != saved.size:
        return f"{path} has {size} bytes, and {saved.size} were saved", remedy
    try:
        digest = await sha256(path, nice=nice)
    except HypervisorError as error:
        return error.message, error.remedy
    if digest != saved.sha256:
        return f"{path} is damaged: its content is not what was saved", remedy
    return None


def copy_path(directory: Path, disk: Block) -> Path:
    """Where the copy of a disk is, in a save's directory."""
    return directory / DISKS / disk.id


def is_copy(directory: Path, manifest: Manifest) -> bool:
    """Whether this is not the directory that was saved into, but a copy of it. Blocks.

    Raises:
        UsageError: That cannot be seen.
    """
    try:
        status = (directory / MEMORY).lstat()
    except OSError as error:
        raise UsageError(plain_words(error), remedy=what_to_do(error)) from error
    return (status.st_ino, status.st_ctime_ns) != (manifest.memory.inode, manifest.memory.changed)

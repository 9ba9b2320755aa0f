"""What is saved, and whether it can be restored here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from entourage.errors import EntourageError, UsageError, plain_words, what_to_do
from entourage.hosts.threads import in_thread
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.hypervisor import holder_of
from entourage.hypervisors.saved.machine import objections
from entourage.settings.model import Settings


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """A save, as ``entourage saved`` shows it.

    Attributes:
        directory: Where it is.
        domain: The machine's name; empty where that cannot be read.
        uuid: The machine's.
        made: When, ISO 8601 with an offset.
        host: On which host.
        checkpoint: It went on after that.
        since: The save that its disks have only the changes since of; empty: they are whole.
        size: Bytes of its memory's file, and of copied disks'.
        devices: What is in it, or was there.
        against: Why it cannot be restored here, each a sentence with what to do; empty: it can.
    """

    directory: str
    domain: str = ""
    uuid: str = ""
    made: str = ""
    host: str = ""
    checkpoint: bool = False
    since: str = ""
    size: int = 0
    devices: tuple[str, ...] = ()
    against: tuple[str, ...] = ()


async def saves(settings: Settings, directories: Sequence[str]) -> list[Saved]:
    """Look at saves; of a directory that is none, at those in it.

    What takes long is not looked at: whether memory is what was saved.

    Args:
        settings: This host's.
        directories: Where.

    Raises:
        UsageError: There is no such directory.
    """
    return await in_thread(_saves, settings, directories)


def _saves(settings: Settings, directories: Sequence[str]) -> list[Saved]:
    found: list[Saved] = []
    for name in directories:
        directory = Path(name).absolute()
        try:
            if not directory.is_dir():
                raise UsageError(
                    f"there is no directory {directory}", remedy="mount what it is on, if it is"
                )
            if manifests.is_save(directory):
                found.append(_looked_at(settings, directory))
                continue
            inside = sorted(path for path in directory.iterdir() if path.is_dir())
        except OSError as error:
            raise UsageError(plain_words(error), remedy=what_to_do(error)) from error
        found += [_looked_at(settings, path) for path in inside if manifests.is_save(path)]
    return found


def _looked_at(settings: Settings, directory: Path) -> Saved:
    try:
        manifest = manifests.read_manifest(directory)
    except UsageError as error:
        return Saved(directory=str(directory), against=(str(error),))
    try:
        found = objections(directory, manifest, holder_of(settings))
        against = [f"{one.reason} ({one.remedy})" for one in found]
        if not manifest.checkpoint and manifests.is_copy(directory, manifest):
            against.append("it is a copy: --only-copy, if no other is restored")
    except (EntourageError, OSError) as error:
        against = [plain_words(error)]
    return Saved(
        directory=str(directory),
        domain=manifest.domain.name,
        uuid=manifest.domain.uuid or "",
        made=manifest.made,
        host=manifest.host,
        checkpoint=manifest.checkpoint,
        since=manifest.since.directory if manifest.since else "",
        size=manifest.size,
        devices=tuple(device.label for device in manifest.domain.devices),
        against=tuple(against),
    )

"""All of this host's own machines, saved when it shuts down and restored when it is up again."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from entourage.errors import (
    DeviceError,
    EntourageError,
    HypervisorError,
    UsageError,
    plain_words,
    what_to_do,
)
from entourage.hosts import programs
from entourage.hypervisors.registry import open_hypervisor, starter_of_files
from entourage.hypervisors.saved import claim, manifest
from entourage.settings.model import Settings

_SYSTEMD_RUNS = Path("/run/systemd/system")
_ANSWERS_WITHIN = 10.0  # seconds for systemd


def usual_place(settings: Settings) -> str:
    """The directory for the saves of all of this host's machines, where none is named."""
    return str(Path(settings.paths.state, "shutdown"))


def is_usual(settings: Settings, directory: str) -> bool:
    """Whether it is that one: nobody else puts anything into it. Blocks."""
    return Path(directory).resolve() == Path(usual_place(settings)).resolve()


def make_place(settings: Settings, directory: str) -> None:
    """See that it is there; the usual one is made, 0700. Blocks.

    One that its user has named is not: what it is on may not be mounted.

    Raises:
        UsageError: It is not there, or cannot be made.
    """
    try:
        if is_usual(settings, directory):
            Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not Path(directory).is_dir():
            raise _not_there(directory)
    except OSError as error:
        raise UsageError(plain_words(error), remedy=what_to_do(error)) from error


def tidy(settings: Settings, directory: str, name: str) -> None:
    """Have room for the save of a machine: of one that was restored by hand, the save is removed.

    Only in the usual place: what is in a directory that its user has named is the user's. Blocks.

    Raises:
        HypervisorError: It cannot be removed, or not be looked at.
    """
    if is_usual(settings, directory):
        forget(Path(directory, name))


async def running(settings: Settings) -> Sequence[str]:
    """The names of Entourage's own machines that run here; libvirt and xl see to theirs."""
    found = await open_hypervisor(settings, starter_of_files()).domains()
    return sorted(one.name for one in found if one.pid is not None and one.state != "incoming")


async def is_going_down() -> bool:
    """Whether this host shuts down; where systemd does not run it, that is taken for granted.

    Where systemd does not answer, it is not: nobody's machine is ended for that.
    """
    if not _SYSTEMD_RUNS.is_dir():  # noqa: ASYNC240 - /run
        return True
    try:
        _, said, _ = await programs.run("systemctl", "is-system-running", within=_ANSWERS_WITHIN)
    except DeviceError:
        return False
    return said.strip() == "stopping"


def to_restore(settings: Settings, directory: str) -> list[Path]:
    """The saves that a directory holds and nobody has restored, in the order of their making.

    A checkpoint is none of them, for its guest went on. One that cannot be read is: restoring it
    will say why. Blocks.

    Raises:
        UsageError: The directory cannot be looked at, or one that its user has named is not there.
    """
    try:
        inside = [path for path in Path(directory).iterdir() if manifest.is_save(path)]
    except FileNotFoundError as error:
        if is_usual(settings, directory):
            return []
        raise _not_there(directory) from error
    except OSError as error:
        raise UsageError(plain_words(error), remedy=what_to_do(error)) from error
    found: list[tuple[str, Path]] = []
    for path in inside:
        made = ""
        with contextlib.suppress(EntourageError):
            saved = manifest.read_manifest(path)
            if saved.checkpoint or _is_restored(path):
                continue
            made = saved.made
        found.append((made, path))
    return [path for _, path in sorted(found)]


def forget(directory: Path) -> None:
    """Remove a save that was restored; another one stays. Blocks.

    Raises:
        HypervisorError: It cannot be removed.
    """
    if not _is_restored(directory):
        return
    try:
        shutil.rmtree(directory)
    except OSError as error:
        raise HypervisorError(
            f"{directory} was restored and is left: {plain_words(error)}", remedy=what_to_do(error)
        ) from error


def _is_restored(directory: Path) -> bool:
    found = claim.read_claim(directory)
    return found is not None and found.restored


def _not_there(directory: str) -> UsageError:
    return UsageError(
        f"there is no directory {directory}", remedy="make it, or mount what it is on"
    )

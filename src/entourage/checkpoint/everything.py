"""All of this host's own machines, saved when it shuts down and restored when it is up again."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from entourage.errors import EntourageError, HypervisorError, UsageError, plain_words, what_to_do
from entourage.hypervisors.registry import open_hypervisor, starter_of_files
from entourage.hypervisors.saved import claim, manifest
from entourage.settings.model import Settings

_SYSTEMD_RUNS = Path("/run/systemd/system")


def usual_place(settings: Settings) -> str:
    """The directory for the saves of all of this host's machines, where none is named."""
    return str(Path(settings.paths.state, "shutdown"))


def make_place(directory: str) -> None:
    """Make it, 0700, if it is not there. Blocks.

    Raises:
        UsageError: It cannot be made.
    """
    try:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(plain_words(error), remedy=what_to_do(error)) from error


async def running(settings: Settings) -> Sequence[str]:
    """The names of Entourage's own machines that run here; libvirt and xl see to theirs."""
    found = await open_hypervisor(settings, starter_of_files()).domains()
    return sorted(one.name for one in found if one.pid is not None and one.state != "incoming")


def is_going_down() -> bool:
    """Whether this host shuts down; where systemd does not run it, that is taken for granted."""
    if not _SYSTEMD_RUNS.is_dir():
        return True
    command = ["systemctl", "is-system-running"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() == "stopping"


def to_restore(directory: str) -> list[Path]:
    """The saves that a directory holds and nobody has restored, in the order of their making.

    A checkpoint is none of them, for its guest went on. One that cannot be read is: restoring it
    will say why. Blocks.

    Raises:
        UsageError: The directory cannot be looked at.
    """
    try:
        inside = [path for path in Path(directory).iterdir() if manifest.is_save(path)]
    except FileNotFoundError:
        return []
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

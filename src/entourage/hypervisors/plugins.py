"""Backends that other packages bring, by entry points of the group ``entourage.hypervisors``.

Reading every package's metadata is slow. So it is seen first, by the names of files, whether any
package has such an entry point at all.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from entourage.errors import UsageError
from entourage.hypervisors.backend import Backend

GROUP = "entourage.hypervisors"
_FOLDERS = (".dist-info", ".egg-info")


@functools.cache
def plug_ins() -> tuple[Backend, ...]:
    """All of them, by name; looked for once.

    Raises:
        UsageError: One cannot be used.
    """
    if not any(_mentions(place) for place in sys.path):
        return ()
    from importlib.metadata import entry_points  # noqa: PLC0415 - it is slow to import

    found: list[Backend] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        package = entry.dist.name if entry.dist is not None else entry.value
        remedy = f"mend or remove {package}"
        try:
            loaded = entry.load()
        except Exception as error:  # another package's code may raise anything as it is imported
            raise UsageError(
                f"the hypervisor {entry.value} of {package} cannot be loaded: {error!r}",
                remedy=remedy,
            ) from error
        if not isinstance(loaded, Backend):
            raise UsageError(f"{entry.value} of {package} is no Backend", remedy=remedy)
        found.append(loaded)
    return tuple(found)


def _mentions(place: str) -> bool:
    """Whether a package in a directory of ``sys.path`` has an entry point of that group."""
    group = f"[{GROUP}]".encode()
    try:
        with os.scandir(place or ".") as entries:
            folders = [entry.path for entry in entries if entry.name.endswith(_FOLDERS)]
    except NotADirectoryError:
        return place.endswith((".zip", ".whl", ".pyz")) and Path(place).is_file()
    except OSError:
        return False
    for folder in folders:
        try:
            if group in Path(folder, "entry_points.txt").read_bytes():
                return True
        except OSError:
            continue
    return False

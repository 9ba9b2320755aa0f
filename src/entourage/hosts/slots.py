"""So many processes of a kind at once on this host, and no more; a slot is free when one dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote


@contextlib.contextmanager
def slot(directory: Path, kind: str, count: int) -> Generator[bool]:
    """Hold one of ``count`` slots for as long as the context lasts.

    Args:
        directory: Of the slots, each a locked file; made where it is not there, as its parent is.
        kind: Whose slots: text of any letters.
        count: How many there are.

    Yields:
        Whether there was one that was free.
    """
    for each in (directory.parent, directory):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    for number in range(count):
        # Never deleted: two processes could else hold locks on two files of one name.
        held = os.open(directory / f"{quote(kind, safe='')}.{number}", flags, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            continue
        try:
            yield True
        finally:
            os.close(held)
        return
    yield False

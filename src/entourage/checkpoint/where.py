"""Paths that a user has typed of a save, and of what it is restored to. All of it blocks."""

from __future__ import annotations

from pathlib import Path

from entourage.errors import UsageError, plain_words, what_to_do

_LOOK_AT_LINKS = "see where its links lead: namei -l"


def absolute_place(directory: str) -> str:
    """A save's directory as it is called everywhere; its parent's links are resolved once.

    Raises:
        UsageError: It cannot be one, or its links cannot be followed.
    """
    path = Path(directory).absolute()
    if not path.name or path.name in {".", ".."} or not str(path).isprintable():
        raise UsageError(f"{directory!r} is no directory to save in", remedy="name one to be made")
    return str(real(str(path.parent)) / path.name)


def real(path: str) -> Path:
    """A path without links; raises UsageError where they lead nowhere, or cannot be looked at."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise UsageError(f"{path}: {plain_words(error)}", remedy=_LOOK_AT_LINKS) from error


def is_device(path: str) -> bool:
    """Whether that is a block device; raises UsageError where it cannot be looked at."""
    try:
        return Path(path).is_block_device()
    except OSError as error:
        raise UsageError(plain_words(error), remedy=what_to_do(error)) from error

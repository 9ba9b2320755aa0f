"""A file that counts as made by a migration."""

from __future__ import annotations

from pathlib import Path

from entourage.hosts.allowed import Allowed


def make(allowed: Allowed, path: str, image_format: str = "raw") -> None:
    """What is at the path was made by this migration."""
    with Path(path).open("rb") as file:
        allowed.make(path, image_format, file.fileno())

"""Files that a machine is built from or writes: compared between hosts, and put on the disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def digest(path: str) -> str:
    """SHA-256 of a file; empty where it cannot be read. Blocks."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - what hashlib takes
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

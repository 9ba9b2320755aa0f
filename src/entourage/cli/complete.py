"""What the shell offers when TAB is pressed. Never an error, never slow: rather nothing."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path


def domains(incomplete: str) -> list[str]:
    """The names of this host's domains."""
    with contextlib.suppress(Exception):
        from entourage.cli.domains import names  # noqa: PLC0415 - only when TAB is pressed
        from entourage.settings.load import load_settings  # noqa: PLC0415 - same

        return [name for name in names(load_settings()) if name.startswith(incomplete)]
    return []


def domains_and_files(incomplete: str) -> list[str]:
    """Domains, and the domain files and directories that the text may become."""
    found: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        folder, _, begun = incomplete.rpartition("/")
        prefix = f"{folder}/" if "/" in incomplete else ""
        found = [
            f"{prefix}{path.name}{'/' if path.is_dir() else ''}"
            for path in sorted(Path(prefix or ".").iterdir())
            if path.name.startswith(begun) and (path.is_dir() or path.suffix == ".toml")
        ]
    return domains(incomplete) + found


def hosts(incomplete: str) -> list[str]:
    """The hosts that the user's ssh configuration names."""
    found: dict[str, None] = {}
    with contextlib.suppress(OSError, RuntimeError):
        for line in Path("~/.ssh/config").expanduser().read_text("utf-8", "replace").splitlines():
            match = re.match(r"\s*host(?:\s+|\s*=\s*)(.*)", line, re.IGNORECASE)
            names = match[1].split() if match else []
            found |= dict.fromkeys(name for name in names if not set(name) & set("*?!"))
    return [name for name in found if name.startswith(incomplete)]

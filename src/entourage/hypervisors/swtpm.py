"""What a host's swtpm can do, and putting its state on the disk: the same for all backends."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

import msgspec

from entourage.hypervisors.base import TpmFacts
from entourage.hypervisors.files import sync_directory

_SWTPM = "swtpm"


class _Said(msgspec.Struct):
    """What ``swtpm socket --print-capabilities`` says."""

    features: list[str] = []
    version: str = ""


async def facts() -> TpmFacts:
    """What this host's swtpm can do; without a program where there is none."""
    if shutil.which(_SWTPM) is None:
        return TpmFacts()
    process = await asyncio.create_subprocess_exec(
        _SWTPM, "socket", "--print-capabilities",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    stdout, _ = await process.communicate()
    return parse_capabilities(stdout.decode(errors="replace"))


def parse_capabilities(text: str) -> TpmFacts:
    """Read ``swtpm socket --print-capabilities``; before 0.7 it says neither versions nor TPMs."""
    try:
        said = msgspec.json.decode(text, type=_Said)
    except msgspec.MsgspecError:
        said = _Said()
    return TpmFacts(
        program=_SWTPM,
        version=tuple(int(part) for part in re.findall(r"\d+", said.version)),
        capabilities=frozenset(said.features),
    )


def sync_state(directory: Path) -> None:
    """Wait until a TPM's state is on the disk: swtpm itself never sees to that. Blocks.

    It is done in the blackout, so each sync counts: one for each file that holds anything (the lock
    does not), one for their names. Those above are ``sync_parents``'s.
    """
    for path in directory.iterdir():
        if path.stat().st_size:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    sync_directory(directory)


def sync_parents(directory: Path) -> None:
    """Wait until the directory of a TPM's state is known on the disk: once it is made. Blocks."""
    for part in (directory.parent, directory.parent.parent):
        sync_directory(part)

"""What a host's swtpm can do, and putting its state on the disk: the same for all backends."""

from __future__ import annotations

import os
import re
import shutil
import struct
from pathlib import Path

import msgspec

from entourage import durable
from entourage.errors import HypervisorError
from entourage.hosts import programs
from entourage.hypervisors.base import TpmFacts

_SWTPM = "swtpm"
_ANSWERS_WITHIN = 30.0  # seconds
# swtpm's blobheader (src/swtpm/swtpm_nvstore.c): versions, its own size, flags, the file's length.
_HEADER = struct.Struct(">BBHHI")


class _Said(msgspec.Struct):
    """What ``swtpm socket --print-capabilities`` says."""

    features: list[str] = []
    version: str = ""


async def facts() -> TpmFacts:
    """What this host's swtpm can do; without a program where there is none."""
    if shutil.which(_SWTPM) is None:
        return TpmFacts()
    command = (_SWTPM, "socket", "--print-capabilities")
    _, said, _ = await programs.run(*command, within=_ANSWERS_WITHIN)
    return parse_capabilities(said)


def parse_capabilities(text: str) -> TpmFacts:
    """Read ``swtpm socket --print-capabilities``; before 0.7 it says neither versions nor TPMs."""
    try:
        said = msgspec.json.decode(text, type=_Said)
    except (msgspec.MsgspecError, RecursionError):
        said = _Said()
    return TpmFacts(
        program=_SWTPM,
        version=tuple(int(part) for part in re.findall(r"\d+", said.version)),
        capabilities=frozenset(said.features),
    )


def sync_state(directory: Path) -> None:
    """Wait until a TPM's state is on the disk: swtpm itself never sees to that. Blocks.

    It is done in the blackout, so each sync counts: one for each file of the state (the lock is
    none), one for their names. Those above are ``sync_parents``'s.

    Raises:
        HypervisorError: The state is not whole: swtpm says nothing where the disk was full.
    """
    states = [path for path in directory.iterdir() if path.name.startswith("tpm")]
    if not states:
        raise _not_whole(directory)
    for path in states:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            header = os.read(descriptor, _HEADER.size)
            if len(header) < _HEADER.size:
                raise _not_whole(path)
            if _HEADER.unpack(header)[-1] != os.fstat(descriptor).st_size:
                raise _not_whole(path)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    durable.sync_directory(directory)


def _not_whole(path: Path) -> HypervisorError:
    return HypervisorError(
        f"swtpm has not written the TPM's state whole: {path}",
        remedy="see whether the disk there is full",
    )


def sync_parents(directory: Path) -> None:
    """Wait until the directory of a TPM's state is known on the disk: once it is made. Blocks."""
    for part in (directory.parent, directory.parent.parent):
        durable.sync_directory(part)

"""Programs that memory goes through on its way to a save, or out of one; no byte passes here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path

import msgspec

from entourage.errors import HypervisorError, UsageError, plain_words, what_to_do

COMPRESS, ENCRYPT = "zstd", "age"
_SAID = 4096  # bytes of what a program says that are kept


class Filter(msgspec.Struct, frozen=True):
    """One program.

    Attributes:
        name: ``zstd`` or ``age``, which is its name as a program too.
        key: Of ``age``: a recipient, or the path of a file of them; to go back, of identities.
    """

    name: str
    key: str = ""

    def there(self) -> list[str]:
        """The command that memory goes through into a save."""
        if self.name == COMPRESS:
            return ["zstd", "--quiet", "--stdout", "-1", "--threads=0"]
        way = "--recipients-file" if self.key.startswith("/") else "--recipient"
        return ["age", "--encrypt", way, self.key]

    def back(self) -> list[str]:
        """The command that it goes through out of one."""
        if self.name == COMPRESS:
            return ["zstd", "--quiet", "--stdout", "--decompress"]
        return ["age", "--decrypt", "--identity", self.key]


def check(filters: Sequence[Filter]) -> None:
    """See that these programs, and their keys, are there. Blocks.

    Raises:
        UsageError: One is not.
    """
    for one in filters:
        if one.name not in {COMPRESS, ENCRYPT}:
            raise UsageError(
                f"nothing is known of {one.name!r}, which the save's memory went through",
                remedy="a newer Entourage has made it: upgrade this one",
            )
        if shutil.which(one.name) is None:
            raise UsageError(f"{one.name} is not installed", remedy=f"install {one.name}")
        if one.key.startswith("/") and not os.access(one.key, os.R_OK):
            raise UsageError(f"{one.key} cannot be read", remedy="see whether it is there")


class Pipeline:
    """Filters, one behind the other, under way.

    Args:
        processes: Them, by their names.
    """

    def __init__(self, processes: Sequence[tuple[str, Process]]) -> None:
        self._processes = processes
        self._said = [asyncio.create_task(_heard(process)) for _, process in processes]

    @classmethod
    async def begin(cls, commands: Sequence[Sequence[str]], source: int, target: int) -> Pipeline:
        """Start them; the caller closes both descriptors then.

        Args:
            commands: What to run, the first of them first; at least one.
            source: Where the first one reads.
            target: Where the last one writes.

        Raises:
            HypervisorError: One cannot be started.
        """
        started: list[tuple[str, Process]] = []
        reads, opened = source, list[int]()
        try:
            for command in commands:
                writes, following = target, -1
                if command is not commands[-1]:
                    following, writes = os.pipe2(os.O_CLOEXEC)
                    opened += [following, writes]
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=reads, stdout=writes, stderr=PIPE
                )
                started.append((command[0], process))
                reads = following
        except OSError as error:
            for _, process in started:
                process.kill()
            raise HypervisorError(
                f"memory has no way: {plain_words(error)}", remedy=what_to_do(error)
            ) from error
        finally:
            for descriptor in opened:
                os.close(descriptor)
        return cls(started)

    async def finished(self) -> None:
        """Wait until all of it went through.

        Raises:
            HypervisorError: One of them has failed.
        """
        for (name, process), said in zip(self._processes, self._said, strict=True):
            if status := await process.wait():
                words = " ".join((await said).split()) or f"status {status}"
                raise HypervisorError(f"memory did not go through {name}: {words}")

    async def end(self) -> None:
        """End them, wherever they are."""
        for _, process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await asyncio.gather(*self._said)


async def _heard(process: Process) -> str:
    """What it says on stderr, as far as that is kept; the rest is read, or it would wait."""
    kept = b""
    if process.stderr is not None:
        while more := await process.stderr.read(_SAID):
            kept = (kept + more)[:_SAID]
    return kept.decode(errors="replace")


def absolute(key: str) -> str:
    """A recipient as it is; of a file, its absolute path."""
    return str(Path(key).absolute()) if "/" in key or Path(key).is_file() else key

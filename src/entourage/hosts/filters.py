"""Programs that memory goes through on its way to a save, or out of one; no byte passes here."""

from __future__ import annotations

import asyncio
import os
import shutil
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path

import msgspec

from entourage.errors import (
    DeviceError,
    HypervisorError,
    UsageError,
    plain_words,
    what_to_do,
)
from entourage.hosts import programs
from entourage.hosts.threads import in_thread

COMPRESS, ENCRYPT = "zstd", "age"
_SAID = 4096  # bytes of what a program says that are kept
_ANSWERS_WITHIN = 30.0  # seconds for a program that is only tried


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


async def check_recipient(one: Filter) -> None:
    """See that something can be encrypted to it.

    Raises:
        UsageError: It cannot.
    """
    try:
        status, _, said = await programs.run(*one.there(), within=_ANSWERS_WITHIN)
    except DeviceError as error:
        raise UsageError(error.message, remedy=error.remedy) from error
    if status:
        raise UsageError(
            f"nothing can be encrypted to {one.key}: {said}",
            remedy="name an age recipient, an ssh public key, or a file of them",
        )


async def check_key(one: Filter, path: Path) -> None:
    """See that a key decrypts a file, by its beginning.

    Raises:
        UsageError: It does not, or not in time; or the file cannot be read.
    """
    try:
        handle = await in_thread(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(plain_words(error), remedy=what_to_do(error)) from error
    try:
        process = await asyncio.create_subprocess_exec(
            *one.back(), stdin=handle, stdout=PIPE, stderr=PIPE
        )
    except OSError as error:
        raise UsageError(
            f"{one.name} cannot be run: {plain_words(error)}", remedy=f"install {one.name}"
        ) from error
    finally:
        os.close(handle)
    said = asyncio.create_task(kept(process.stderr))
    try:
        async with asyncio.timeout(_ANSWERS_WITHIN):
            begun = await process.stdout.read(1) if process.stdout is not None else b""
            words = "" if begun else " ".join((await said).split())
    except TimeoutError:
        begun, words = b"", f"not within {_ANSWERS_WITHIN:g} s"
    finally:
        await programs.kill(process)
        await programs.read_out(said, asyncio.create_task(kept(process.stdout)))
    if not begun:
        raise UsageError(
            f"{one.key} does not decrypt {path}: {words}",
            remedy="name the identity of one of those that it was encrypted to",
        )


class Pipeline:
    """Filters, one behind the other, under way.

    Args:
        processes: Them, by their names.
    """

    def __init__(self, processes: Sequence[tuple[str, Process]]) -> None:
        self._processes = processes
        self._said = [asyncio.create_task(kept(process.stderr)) for _, process in processes]

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
        for descriptor in (source, target):  # of a program that knows of nothing else
            os.set_blocking(descriptor, True)
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
                await programs.kill(process)
                await programs.read_out(asyncio.create_task(kept(process.stderr)))
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
        failed: list[tuple[int, str]] = []
        for (name, process), said in zip(self._processes, self._said, strict=True):
            if status := await process.wait():
                words = " ".join((await said).split()) or f"status {status}"
                failed.append((status, f"memory did not go through {name}: {words}"))
        if failed:  # those before one that has failed end by a signal, SIGPIPE
            raise HypervisorError(max(failed)[1])

    async def end(self) -> None:
        """End them, wherever they are."""
        for _, process in self._processes:
            await programs.kill(process)
        await programs.read_out(*self._said)


async def kept(stream: asyncio.StreamReader | None) -> str:
    """The beginning of what a program says; the rest is read, or it would wait for that."""
    beginning = b""
    if stream is not None:
        while more := await stream.read(_SAID):
            beginning = (beginning + more)[:_SAID]
    return beginning.decode(errors="replace")


def absolute(key: str) -> str:
    """A recipient as it is; of a file, its absolute path."""
    return key if key.startswith(("age1", "ssh-")) else str(Path(key).absolute())

"""Programs that memory goes through on its way to a save, or out of one; no byte passes here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
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


def check_recipient(one: Filter) -> None:
    """See that something can be encrypted to it. Blocks.

    Raises:
        UsageError: It cannot.
    """
    nothing = subprocess.DEVNULL
    done = subprocess.run(
        one.there(), stdin=nothing, stdout=nothing, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise UsageError(
            f"nothing can be encrypted to {one.key}: {said}",
            remedy="name an age recipient, an ssh public key, or a file of them",
        )


def check_key(one: Filter, path: Path) -> None:
    """See that a key decrypts a file, by its beginning. Blocks.

    Raises:
        UsageError: It does not.
    """
    with (
        path.open("rb") as file,
        subprocess.Popen(
            one.back(), stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process,
    ):
        out, err = process.stdout, process.stderr
        begun = out.read(1) if out is not None else b""
        process.kill()
        said = err.read(_SAID).decode(errors="replace") if err is not None else ""
    if not begun:
        raise UsageError(
            f"{one.key} does not decrypt {path}: {' '.join(said.split())}",
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
                process.kill()
                await process.communicate()
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
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await asyncio.gather(*self._said)


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

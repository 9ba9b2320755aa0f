"""Programs that are run to their end: ``qemu-img``, ``ip``, ``age`` and the like."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Mapping
from typing import Any

import msgspec

from entourage.errors import DeviceError

_LOOKS_FOR = 30.0  # seconds
_KILLED_WITHIN = 5.0  # seconds; one that the kernel holds, for a file server say, ends later


class _Info(msgspec.Struct):
    """What ``qemu-img info`` says of an image."""

    filename: str
    details: dict[str, Any] = msgspec.field(name="format-specific", default_factory=dict[str, Any])


async def run(
    *command: str,
    environment: Mapping[str, str] | None = None,
    umask: int = -1,
    within: float | None = None,
    cwd: str | None = None,
) -> tuple[int, str, str]:
    """Run a program; it is ended where this is cancelled.

    Args:
        command: The program and its arguments.
        environment: More of it.
        umask: Another one than this process's.
        within: Seconds for it; None where it reads or writes as much as there is.
        cwd: The directory that it is run in; None: this process's.

    Returns:
        Its status, its output, and what it said on stderr in one line.

    Raises:
        DeviceError: It cannot be run, or has not ended in time.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            umask=umask,
            cwd=cwd,
        )
    except OSError as error:
        raise DeviceError(
            f"{command[0]} cannot be run: {error.strerror}",
            remedy="install qemu-utils" if command[0].startswith("qemu-") else "",
        ) from error
    try:
        async with asyncio.timeout(within):
            out, err = await process.communicate()
    except TimeoutError:
        raise DeviceError(
            f"{command[0]} has not ended within {within:g} s",
            remedy="see what it waits for: storage, or a server, that does not answer?",
        ) from None
    finally:
        await kill(process)
    said = " ".join(err.decode(errors="replace").split())
    return process.returncode or 0, out.decode(errors="replace"), said


async def kill(process: asyncio.subprocess.Process) -> None:
    """End a program, wherever it is; one that has ended is no error.

    One that does not even end then, since the kernel holds it, is not waited for.
    """
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_KILLED_WITHIN):
            await process.wait()


async def read_out(*reading: asyncio.Task[Any]) -> None:
    """Have what a program that was killed has said read to its end, or its pipes stay open.

    What one that the kernel holds says then, is not waited for.
    """
    _, waiting = await asyncio.wait(reading, timeout=_KILLED_WITHIN)
    for task in waiting:
        task.cancel()


async def qemu_img_info(path: str, image_format: str, *options: str) -> str:
    """What ``qemu-img info`` says of an image that may be open, as JSON.

    It opens what the image's header names: a FIFO, or a server that does not answer, must not hold
    anybody up.

    Raises:
        DeviceError: It cannot be run, failed, or took longer than 30 seconds.
    """
    try:
        async with asyncio.timeout(_LOOKS_FOR):
            return await qemu_img(
                "info", "--output=json", "-U", *options, "-f", image_format, "--", path
            )
    except TimeoutError:
        raise DeviceError(
            f"qemu-img could not read {path}, or what it is built on, in {_LOOKS_FOR:g} s",
            remedy="see what it waits for: qemu-img info --backing-chain",
        ) from None


async def files_of_image(path: str, image_format: str) -> list[str]:
    """The files that an image consists of: itself, what it is built on, where its data is.

    Raises:
        DeviceError: It cannot be read, or names what is no file.
    """
    if image_format == "raw":
        return [path]
    text = await qemu_img_info(path, image_format, "--backing-chain")
    try:
        chain = msgspec.json.decode(text, type=list[_Info])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DeviceError(
            f"qemu-img info says what cannot be understood: {error}",
            remedy=f"try it by hand: qemu-img info --backing-chain {path}",
        ) from error
    found = [path, *(local_path(one.filename, path) for one in chain[1:])]
    data = (one.details.get("data", {}).get("data-file") for one in chain)
    return [*found, *(local_path(str(name), path) for name in data if name)]


def local_path(name: str, top: str) -> str:
    """The path of a file that an image names, or a DeviceError where it is none."""
    path = name.removeprefix("file:")
    if not path.startswith("/"):
        raise DeviceError(
            f"{top} names {name}, which is no absolute path of a file",
            remedy="name it by one, while the domain is off: qemu-img rebase -u -b, or"
            " qemu-img amend -o data_file=",
        )
    return path


async def qemu_img(*arguments: str) -> str:
    """Run ``qemu-img`` and return what it printed.

    Raises:
        DeviceError: It cannot be run, or failed.
    """
    status, out, said = await run("qemu-img", *arguments)
    if status:
        raise DeviceError(f"qemu-img {arguments[0]} failed: {said or f'status {status}'}")
    return out


def has_qemu_img() -> bool:
    """Whether this host has ``qemu-img``."""
    return shutil.which("qemu-img") is not None


def has_qemu_nbd() -> bool:
    """Whether this host has ``qemu-nbd``."""
    return shutil.which("qemu-nbd") is not None

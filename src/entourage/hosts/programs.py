"""Programs that look at disk images and make them: ``qemu-img``, ``fallocate``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil

from entourage.errors import DeviceError

_LOOKS_FOR = 30.0  # seconds


async def run(*command: str) -> tuple[int, str, str]:
    """Run a program; it is ended where this is cancelled.

    Returns:
        Its status, its output, and what it said on stderr in one line.

    Raises:
        DeviceError: It cannot be run.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"LC_ALL": "C"},
        )
    except OSError as error:
        raise DeviceError(
            f"{command[0]} cannot be run: {error.strerror}",
            remedy="install qemu-utils" if command[0] == "qemu-img" else "",
        ) from error
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    said = " ".join(err.decode(errors="replace").split())
    return process.returncode or 0, out.decode(errors="replace"), said


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

"""Running xl, for what nobody waits for with a stopped guest."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from entourage.errors import HypervisorError, what_to_do
from entourage.hosts.programs import kill

_PLACES = "/usr/sbin:/usr/local/sbin:/sbin:/opt/xen/sbin"
_CAPABILITIES = Path("/proc/xen/capabilities")
_PATIENCE = 60.0


def search_path() -> str:
    """PATH, and where xl is for those whose PATH lacks it (ssh gives root's to nobody)."""
    return f"{os.environ.get('PATH', os.defpath)}:{_PLACES}"


def find() -> str | None:
    """Where xl is."""
    return shutil.which("xl", path=search_path())


def is_dom0() -> bool:
    """Whether this host runs Xen domains: a dom0 with xl."""
    try:
        control = "control_d" in _CAPABILITIES.read_text()
    except OSError:
        return False
    return control and find() is not None


async def xl(*arguments: str) -> str:
    """Run xl and return what it printed.

    Raises:
        HypervisorError: It is not there, failed, or does not end.
    """
    return await run(find() or "xl", *arguments)


async def info(*wanted: str) -> dict[str, str]:
    """Some lines of ``xl info``."""
    said: dict[str, str] = {}
    for line in (await xl("info")).splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() in wanted:
            said[key.strip()] = value.strip()
    return said


async def run(*command: str) -> str:
    """Run a program and return what it printed; see ``xl``."""
    name = Path(command[0]).name
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"PATH": search_path(), "LC_ALL": "C"},
        )
    except OSError as error:
        raise HypervisorError(
            f"{name} cannot be run: {error.strerror}", remedy=what_to_do(error)
        ) from error
    try:
        async with asyncio.timeout(_PATIENCE):
            out, err = await process.communicate()
    except TimeoutError as error:
        raise HypervisorError(f"{name} {command[1]} does not end") from error
    finally:
        await kill(process)
    if process.returncode:
        said = " / ".join(err.decode(errors="replace").split("\n")).strip(" /")
        raise HypervisorError(f"{name} {command[1]} failed: {said or process.returncode}")
    return out.decode(errors="replace")

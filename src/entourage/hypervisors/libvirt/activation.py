"""Takes the images of a guest that has come by a migration's way, and stays paused.

libvirt always has a target's QEMU take them as the guest is let run (``late-block-activate``). With
one that is not, QEMU before 10.0 ends itself when it is moved or saved the next time
(``bdrv_inactivate_recurse: Assertion '!(bs->open_flags & BDRV_O_INACTIVE)'``; seen in 7.2). A newer
one has a command for it; an older one takes an image where it is to be exported, which is done here
at a socket that nobody can connect to, or, where libvirt passes none on, one that nobody but QEMU's
user can.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from entourage.errors import HypervisorError
from entourage.hosts.local import listening_here
from entourage.hypervisors.libvirt.connection import ask, tell_qemu
from entourage.hypervisors.understood import understood

_COMMAND_SINCE = 10  # QEMU's version
_NAME = "entourage-take"
_SOON = 0.01  # seconds
_ENDS_WITHIN = 5.0  # seconds for an export to end
_MONITOR = re.compile(r"unix:(/.+)/[^/]+,server(=on)?")
"""Of ``query-chardev``: where libvirt speaks with QEMU, in a directory made for that QEMU alone."""


async def take_images(raw: Any) -> None:
    """Have a domain's QEMU take the images of its guest, which stands still; again is no error.

    Args:
        raw: ``libvirt.virDomain``.

    Raises:
        HypervisorError: QEMU, or libvirt, says no. What to do about it, the caller knows.
    """
    version = await _told(raw, "query-version")
    with understood("QEMU's answer about its version"):
        newer = int(version["qemu"]["major"]) >= _COMMAND_SINCE
    if newer:
        await _told(raw, "blockdev-set-active", active=True)
        return
    drives: list[dict[str, Any]] = await _told(raw, "query-block")
    with understood("QEMU's answer about its disks"):
        nodes = [str(one["inserted"]["node-name"]) for one in drives if one.get("inserted")]
    if not nodes:
        return
    # Nobody is told of that server; where there is one already, of a backup's or of a process that
    # was killed half-way, that will do as well.
    started = await _serve_nobody(raw)
    try:
        # Of a process that was killed half-way.
        if await tell_qemu(raw, "block-export-del", id=_NAME, mode="hard") is not None:
            await _gone(raw)
        for node in nodes:
            await _told(
                raw, "block-export-add",
                **{"type": "nbd", "id": _NAME, "node-name": node, "name": node, "writable": False},
            )  # fmt: skip
            await _told(raw, "block-export-del", id=_NAME, mode="hard")
            await _gone(raw)
    finally:
        if started:
            await tell_qemu(raw, "nbd-server-stop")


def not_before_it_has_run(name: str) -> str:
    """What to do where QEMU says that a guest has not run: it takes images as that is let run.

    Args:
        name: The domain's.
    """
    return f"let it run for a moment: virsh resume {name}; virsh suspend {name}"


def not_while_paused(name: str) -> str:
    """What to do where images cannot be taken, be they taken already or not: nobody can see that.

    Args:
        name: The domain's.
    """
    return f"let it run, and pause it again once that is done: virsh resume {name}"


async def _serve_nobody(raw: Any) -> bool:
    """Have QEMU serve exports to nobody; False where it has a server.

    Where it has none and starts none, the first export is refused.
    """
    qemu: Any = importlib.import_module("libvirt_qemu")
    if not hasattr(qemu, "qemuMonitorCommandWithFiles"):  # older than 8.2.0
        own = {"path": f"{await _directory(raw)}/{_NAME}.sock"}
        return await _start_server(raw, {"type": "unix", "data": own})
    with tempfile.TemporaryDirectory(prefix="entourage.") as directory:
        path = Path(directory) / "take.sock"
        with listening_here(path) as server:
            path.unlink()
            text = json.dumps({"execute": "getfd", "arguments": {"fdname": _NAME}})
            await ask(qemu.qemuMonitorCommandWithFiles, raw, text, [server.fileno()], 0)
    return await _start_server(raw, {"type": "fd", "data": {"str": _NAME}})


async def _start_server(raw: Any, address: dict[str, Any]) -> bool:
    return await tell_qemu(raw, "nbd-server-start", addr=address) is not None


async def _directory(raw: Any) -> str:
    """The directory that libvirt has made for this QEMU alone, which may make sockets there."""
    lines: list[dict[str, Any]] = await _told(raw, "query-chardev")
    with understood("QEMU's answer about its lines"):
        names = {str(one["label"]): str(one["filename"]) for one in lines}
    found = _MONITOR.fullmatch(names.get("charmonitor", ""))
    if found is None:
        raise _refused("query-chardev")
    return found[1]


async def _gone(raw: Any) -> None:
    """Wait until the export is gone: QEMU tells libvirt, and libvirt nobody."""
    deadline = time.monotonic() + _ENDS_WITHIN
    while any(one.get("id") == _NAME for one in await _told(raw, "query-block-exports")):
        if time.monotonic() > deadline:
            raise _refused("query-block-exports")
        await asyncio.sleep(_SOON)


async def _told(raw: Any, command: str, **arguments: Any) -> Any:
    """What QEMU answers; raises HypervisorError where it refuses."""
    answer = await tell_qemu(raw, command, **arguments)
    if answer is None:
        raise _refused(command)
    return answer


def _refused(command: str) -> HypervisorError:
    return HypervisorError(
        f"its QEMU does not take the disks of a guest that is paused ({command})"
    )

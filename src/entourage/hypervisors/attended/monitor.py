"""QEMU's human monitor of a VM of Proxmox VE's: by ``qm monitor``, or by QEMU's own socket."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from typing import Any

import msgspec

from entourage.errors import HypervisorError
from entourage.hosts.programs import kill
from entourage.hypervisors.guestexec import short
from entourage.hypervisors.understood import understood


class _Fault(msgspec.Struct, frozen=True):
    desc: str = ""


class _Told(msgspec.Struct, frozen=True, rename={"result": "return"}):
    """What QEMU says: an answer, an error or an event."""

    result: str | dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    error: _Fault | None = None


async def by_qm(vmid: str, command: str) -> str:
    """By ``qm monitor``, which reads lines as somebody types them, and says them again perhaps."""
    process = await asyncio.create_subprocess_exec(
        "qm", "monitor", vmid, stdin=PIPE, stdout=PIPE, stderr=STDOUT, start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    try:
        said, _ = await process.communicate(f"{command}\nquit\n".encode())
    finally:
        await kill(process)
    lines = [
        line.replace("qm> ", "").strip() for line in said.decode(errors="replace").splitlines()
    ]
    echoes = {"", "qm>", command, "quit"}
    rest = [line for line in lines if line not in echoes and not line.startswith("Entering Q")]
    if process.returncode:
        why = short(" ".join(rest)) or process.returncode
        raise HypervisorError(f"qm monitor {vmid}: {why}")
    return "\n".join(rest)


async def by_socket(path: Path, command: str) -> str:
    """By QEMU's own socket; one at a time may be connected, so it is not kept."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        await reader.readline()  # its greeting
        said = ""
        for name, arguments in (
            ("qmp_capabilities", {}),
            ("human-monitor-command", {"command-line": command}),
        ):
            asked = {"execute": name, "arguments": arguments}
            writer.write(msgspec.json.encode(asked) + b"\n")
            said = await _answer(reader, path)
        return said.strip()
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader, path: Path) -> str:
    """QEMU's next answer; its events are passed over."""
    while line := await reader.readline():
        with understood(f"what QEMU says at {path}"):
            told = msgspec.json.decode(line, type=_Told)
        if told.error is not None:
            raise HypervisorError(f"{path}: {short(told.error.desc)}")
        if told.result is not msgspec.UNSET:
            return told.result if isinstance(told.result, str) else ""
    raise HypervisorError(f"{path}: QEMU went away")

"""The guest agent of a VM of Proxmox VE's, by ``qm``, as qm(1) has it."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from entourage.errors import HypervisorError, plain_words, what_to_do
from entourage.hypervisors.seams import Objection
from entourage.settings.textfile import printable

_RUNS_WITHIN = 30  # seconds that a program in the guest may take
_QM_WITHIN = 10.0  # seconds more, for qm itself
_MOST = 300  # letters of what is said that are shown


class _Ended(msgspec.Struct, frozen=True, rename="kebab"):
    exited: bool | int = False
    exitcode: int | None = None
    signal: int | None = None
    err_data: Annotated[str, Meta(max_length=1 << 22)] = ""


class QmGuestAgent:
    """The guest agent of one VM.

    Args:
        vmid: Gives its number.
    """

    def __init__(self, vmid: Callable[[], Awaitable[str]]) -> None:
        self._vmid = vmid

    async def objections(self) -> Sequence[Objection]:
        """Why nothing can be run in the guest."""
        vmid = await self._vmid()
        status, said = await _qm("agent", vmid, "ping")
        if not status:
            return ()
        why = f"no guest agent answers in it: {said}".rstrip(": ")
        return [(why, f"qm set {vmid} --agent 1, and qemu-guest-agent in the guest")]

    async def run(self, program: str, words: Sequence[str]) -> None:
        """Run a program in the guest, and wait for its end.

        Raises:
            HypervisorError: It cannot be run, fails, or takes too long.
        """
        vmid = await self._vmid()
        limit = ("--timeout", str(_RUNS_WITHIN))
        status, said = await _qm("guest", "exec", vmid, *limit, "--", program, *words)
        remedy = f"qm agent {vmid} ping"
        if status:
            raise HypervisorError(f"{program} was not run: {said}", remedy=remedy)
        try:
            ended = msgspec.json.decode(said, type=_Ended)
        except msgspec.MsgspecError as error:
            raise HypervisorError(
                f"what qm says of {program} is not understood: {said}", remedy=remedy
            ) from error
        if not ended.exited:
            raise HypervisorError(f"{program} has not ended within {_RUNS_WITHIN} s", remedy=remedy)
        if ended.exitcode or ended.signal is not None:
            how = f"with {ended.exitcode}" if ended.exitcode else f"by signal {ended.signal}"
            why = printable(ended.err_data.strip()[-_MOST:])
            raise HypervisorError(f"{program} ended {how}: {why}".rstrip(": "))


async def _qm(*words: str) -> tuple[int, str]:
    """How it ended, and what it said."""
    try:
        process = await asyncio.create_subprocess_exec(
            "qm", *words, stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=STDOUT
        )
    except OSError as error:
        raise HypervisorError(f"qm: {plain_words(error)}", remedy=what_to_do(error)) from error
    try:
        async with asyncio.timeout(_RUNS_WITHIN + _QM_WITHIN):
            said, _ = await process.communicate()
    except TimeoutError as error:
        raise HypervisorError(f"qm {words[0]} does not end", remedy="ps -C qm") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = said.decode(errors="replace").strip()
    return process.returncode or 0, text if not process.returncode else printable(text[-_MOST:])

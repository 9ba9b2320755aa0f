"""The guest agent of a VM of Proxmox VE's, by ``qm``, as qm(1) has it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from entourage.errors import EntourageError, HypervisorError
from entourage.hosts.programs import run
from entourage.hypervisors.guestexec import (
    NO_AGENT,
    PAUSED,
    RUNS_WITHIN,
    Status,
    check_ended,
    lacking,
    not_ended,
    not_run,
    short,
)
from entourage.hypervisors.seams import Objection
from entourage.hypervisors.understood import understood

_QM_WITHIN = 10.0  # seconds more, for qm itself


class QmGuestAgent:
    """The guest agent of one VM.

    Args:
        vmid: Gives its number.
        paused: Whether its user has paused the guest; qm says then that its agent does not run.
    """

    def __init__(
        self, vmid: Callable[[], Awaitable[str]], paused: Callable[[], Awaitable[bool]]
    ) -> None:
        self._vmid = vmid
        self._paused = paused

    async def objections(self) -> Sequence[Objection]:
        """Why nothing can be run in the guest."""
        vmid = await self._vmid()
        remedy = f"qm set {vmid} --agent 1, and qemu-guest-agent in the guest"
        status, said, why = await _qm("guest", "cmd", vmid, "info")
        if status:
            no_agent = f"{NO_AGENT}: {why}".rstrip(": ")
            return [PAUSED if await self._paused() else (no_agent, remedy)]
        try:
            with understood("what its guest agent says of itself"):
                return lacking(msgspec.json.decode(said))
        except HypervisorError as error:
            return [(short(error.message), remedy)]

    async def run(self, program: str, words: Sequence[str]) -> None:
        """Run a program in the guest, and wait for its end.

        Raises:
            HypervisorError: It cannot be run, fails, or takes too long.
        """
        vmid = await self._vmid()
        limit = ("--timeout", f"{RUNS_WITHIN:g}")
        status, said, why = await _qm("guest", "exec", vmid, *limit, "--", program, *words)
        remedy = f"qm guest cmd {vmid} info"
        if status:
            raise not_run(program, *(PAUSED if await self._paused() else (why, remedy)))
        with understood(f"what the guest agent says of {program}", remedy):
            ended = msgspec.json.decode(said, type=Status)
        if not ended.exited:
            raise not_ended(program, remedy)
        check_ended(program, ended, ended.err_data, remedy)


async def _qm(*words: str) -> tuple[int, str, str]:
    """How it ended, what it said, and of which it complained."""
    try:
        status, said, why = await run("qm", *words, within=RUNS_WITHIN + _QM_WITHIN)
    except EntourageError as error:
        raise HypervisorError(error.message, remedy=error.remedy) from error
    return status, said, short(why)

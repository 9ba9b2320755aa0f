"""The guest agent of a libvirt domain, by its channel: runs a program in the guest."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from entourage.errors import HypervisorError
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
from entourage.hypervisors.libvirt.connection import RefusedError, ask
from entourage.hypervisors.libvirt.constants import State
from entourage.hypervisors.libvirt.guestclock import listens
from entourage.hypervisors.seams import Objection
from entourage.hypervisors.understood import understood

_LISTENS_WITHIN = 10.0  # seconds, in a guest that has just come
_ANSWERS_WITHIN = 5  # seconds, to one question; libvirt's own measure
_LOOK_EVERY = 0.1  # seconds: the agent says nothing by itself


class _Began(msgspec.Struct, frozen=True):
    pid: int


class LibvirtGuestAgent:
    """The guest agent of one domain.

    Args:
        raw: Gives the domain, ``virDomain``, which runs here.
        name: Its name.
    """

    def __init__(self, raw: Callable[[], Awaitable[Any]], name: str) -> None:
        self._raw = raw
        self._name = name

    async def objections(self) -> Sequence[Objection]:
        """Why nothing can be run in the guest."""
        raw = await self._raw()
        if not await _runs(raw):
            return [PAUSED]
        remedy = "have qemu-guest-agent run in the guest, with its channel in the domain"
        if not await listens(raw):
            return [(NO_AGENT, remedy)]
        try:
            with understood("what its guest agent says of itself"):
                return lacking(await _tell(raw, "guest-info", {}))
        except RefusedError as error:
            return [(f"its guest agent does not answer: {short(error.message)}", remedy)]
        except HypervisorError as error:
            return [(short(error.message), remedy)]

    async def run(self, program: str, words: Sequence[str]) -> None:
        """Run a program in the guest, and wait for its end.

        Raises:
            HypervisorError: It cannot be run, fails, or takes too long.
        """
        remedy = f'virsh qemu-agent-command {self._name} \'{{"execute": "guest-info"}}\''
        try:
            async with asyncio.timeout(RUNS_WITHIN):
                raw = await self._raw()
                # libvirt refuses at once where it does not listen yet; to ask again could run the
                # program twice.
                if not await listens(raw, _LISTENS_WITHIN):
                    raise not_run(program, NO_AGENT, remedy)
                with understood(f"what the guest agent says of {program}", remedy):
                    status = await self._run(raw, program, words)
                    said = base64.b64decode(status.err_data).decode(errors="replace")
        except TimeoutError as error:
            raise not_ended(program, remedy) from error
        except RefusedError as error:
            why = (short(error.message), remedy) if await _runs(await self._raw()) else PAUSED
            raise not_run(program, *why) from error
        check_ended(program, status, said, remedy)

    async def _run(self, raw: Any, program: str, words: Sequence[str]) -> Status:
        asked = {"path": program, "arg": list(words), "capture-output": True}
        began = msgspec.convert(await _tell(raw, "guest-exec", asked), _Began)
        while True:
            answer = await _tell(raw, "guest-exec-status", {"pid": began.pid})
            status = msgspec.convert(answer, Status)
            if status.exited:
                return status
            await asyncio.sleep(_LOOK_EVERY)


async def _runs(raw: Any) -> bool:
    """Whether the guest runs: its user may have paused it."""
    state, _reason = await ask(raw.state, 0)
    return state in {State.RUNNING, State.BLOCKED}


async def _tell(raw: Any, command: str, arguments: dict[str, Any]) -> Any:
    """What the agent answers; libvirt notes with the domain that somebody has asked it."""
    qemu: Any = importlib.import_module("libvirt_qemu")
    text = json.dumps({"execute": command, "arguments": arguments})
    answer: str = await ask(qemu.qemuAgentCommand, raw, text, _ANSWERS_WITHIN, 0)
    return json.loads(answer)["return"]

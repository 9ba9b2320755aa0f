"""The guest agent of a libvirt domain, by its channel: runs a program in the guest."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt.connection import RefusedError, ask
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.guestclock import has_agent
from entourage.hypervisors.seams import Objection
from entourage.settings.textfile import printable

_ANSWERS_WITHIN = 5  # seconds, to one question; libvirt's own measure
_RUNS_WITHIN = 30.0  # seconds that a program in the guest may take
_LOOK_EVERY = 0.1  # seconds: the agent says nothing by itself
_MOST = 300  # letters of what a guest says that are shown


class _Began(msgspec.Struct, frozen=True):
    pid: int


class _Status(msgspec.Struct, frozen=True, rename="kebab"):
    exited: bool
    exitcode: int | None = None
    signal: int | None = None
    err_data: Annotated[str, Meta(max_length=1 << 22)] = ""


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
        if has_agent(parse(await ask(raw.XMLDesc, 0))):
            return ()
        why = "no guest agent answers in it"
        return [(why, "have qemu-guest-agent run in the guest, with its channel in the domain")]

    async def run(self, program: str, words: Sequence[str]) -> None:
        """Run a program in the guest, and wait for its end.

        Raises:
            HypervisorError: It cannot be run, fails, or takes too long.
        """
        remedy = f'virsh qemu-agent-command {self._name} \'{{"execute": "guest-info"}}\''
        try:
            async with asyncio.timeout(_RUNS_WITHIN):
                status = await self._run(await self._raw(), program, words)
                said = base64.b64decode(status.err_data).decode(errors="replace").strip()
        except TimeoutError as error:
            raise HypervisorError(
                f"{program} has not ended within {_RUNS_WITHIN:g} s", remedy=remedy
            ) from error
        except RefusedError as error:
            why = printable(error.message[:_MOST])
            raise HypervisorError(f"{program} was not run: {why}", remedy=remedy) from error
        except (ValueError, LookupError, TypeError, msgspec.MsgspecError) as error:
            raise HypervisorError(
                f"what the guest agent says of {program} is not understood", remedy=remedy
            ) from error
        if status.exitcode:
            why = printable(said[-_MOST:])
            raise HypervisorError(f"{program} ended with {status.exitcode}: {why}".rstrip(": "))
        if status.exitcode is None:
            raise HypervisorError(f"{program} was ended by signal {status.signal}")

    async def _run(self, raw: Any, program: str, words: Sequence[str]) -> _Status:
        asked = {"path": program, "arg": list(words), "capture-output": True}
        began = msgspec.convert(await _tell(raw, "guest-exec", asked), _Began)
        while True:
            answer = await _tell(raw, "guest-exec-status", {"pid": began.pid})
            status = msgspec.convert(answer, _Status)
            if status.exited:
                return status
            await asyncio.sleep(_LOOK_EVERY)


async def _tell(raw: Any, command: str, arguments: dict[str, Any]) -> Any:
    """What the agent answers; libvirt notes with the domain that somebody has asked it."""
    qemu: Any = importlib.import_module("libvirt_qemu")
    text = json.dumps({"execute": command, "arguments": arguments})
    answer: str = await ask(qemu.qemuAgentCommand, raw, text, _ANSWERS_WITHIN, 0)
    return json.loads(answer)["return"]

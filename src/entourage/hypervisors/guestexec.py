"""QEMU's guest agent, whichever way it is asked: what it says of itself, and of programs it ran.

``guest-info``, ``guest-exec`` and ``guest-exec-status`` of QEMU's ``qga/qapi-schema.json``.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from entourage.errors import HypervisorError
from entourage.hypervisors.seams import Objection
from entourage.settings.textfile import printable

RUNS_WITHIN: Final = 30.0
"""Seconds that a program in the guest may take."""
NO_AGENT: Final = "no guest agent answers in it"
PAUSED: Final[Objection] = (
    "its guest is paused: no program runs in it",
    "let it run, or take the notice out",
)
"""Why nothing can be run in it, whatever its agent says."""
_MOST = 300  # letters of what is said that are shown
_COMMANDS = ("guest-exec", "guest-exec-status")


class Status(msgspec.Struct, frozen=True, rename="kebab"):
    """What has become of a program."""

    exited: bool | int = False
    exitcode: int | None = None
    signal: int | None = None
    err_data: Annotated[str, Meta(max_length=1 << 22)] = ""


class _Command(msgspec.Struct, frozen=True):
    name: str
    enabled: bool | int


class _Info(msgspec.Struct, frozen=True):
    supported_commands: list[_Command]


def short(said: str) -> str:
    """The end of what somebody said, as it can be shown."""
    return printable(said.strip()[-_MOST:])


def lacking(info: Any) -> list[Objection]:
    """Why programs cannot be run, by the agent's ``guest-info``; raises ValueError."""
    commands = msgspec.convert(info, _Info).supported_commands
    allowed = {command.name for command in commands if command.enabled}
    remedy = "allow it in its configuration (block-rpcs or blacklist, allow-rpcs), and restart it"
    return [
        (f"the guest's agent does not allow {name}", remedy)
        for name in _COMMANDS
        if name not in allowed
    ]


def check_ended(program: str, status: Status, said: str, remedy: str) -> None:
    """See that a program which has ended did so well.

    Args:
        program: Its path in the guest.
        status: What has become of it.
        said: What it has said.
        remedy: What to look at where the agent makes no sense.

    Raises:
        HypervisorError: It has failed, or nobody can say.
    """
    if status.exitcode:
        raise HypervisorError(f"{program} ended with {status.exitcode}: {short(said)}".rstrip(": "))
    if status.signal is not None:
        raise HypervisorError(
            f"{program} ended by signal {status.signal}: {short(said)}".rstrip(": ")
        )
    if status.exitcode is None:
        raise HypervisorError(f"how {program} ended is not known", remedy=remedy)


def not_run(program: str, why: str, remedy: str) -> HypervisorError:
    """It was not even begun, as far as is known."""
    return HypervisorError(f"{program} was not run: {why}", remedy=remedy)


def not_ended(program: str, remedy: str) -> HypervisorError:
    """It takes too long."""
    return HypervisorError(f"{program} has not ended within {RUNS_WITHIN:g} s", remedy=remedy)

"""What a host must know, beside a decision's record, to go on with it after a crash.

One struct for each role, with a version, as JSON in the journal. What an older Entourage wrote is
brought forward when it is read; what a newer one wrote is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, cast

import msgspec

from entourage.domain import Domain
from entourage.handover.values import Role
from entourage.settings.model import SshSettings, ToolSettings
from entourage.steps import Step

VERSION: Final = 2
"""Rises whenever a field changes its meaning or its name, with an entry in ``_FORWARD``."""
_QEMU: Final = "qemu"


class SourceDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What the source of a migration needs; no key, no secret.

    Attributes:
        version: Of these fields.
        domain: The running configuration; None of a decision that nothing was made for.
        was_running: Whether its user let the guest run.
        hypervisor, hypervisor_there: The names of this host's, and of the target's.
        ssh: How the target is reached; None: as this host's settings say.
        keep_source_disks: Whether copied disks stay here.
        tool: An external tool for every class, from the command line.
        tools: What the settings of that migration say of external tools; None: as they are now.
        step: What every device has finished.
        memos: What each device must know, by its label.
        peer_is_fenced: The user has vouched that the target is off.
        peer_was_told: The target knows what was decided.
        offline: The domain was off: its definition alone moved.
        forgotten: Its hypervisor has forgotten that definition; until this is written down it may
            have, or somebody else may have taken the domain away.
    """

    version: int = VERSION
    domain: Domain | None = None
    was_running: bool = True
    hypervisor: str = _QEMU
    hypervisor_there: str = msgspec.field(default=_QEMU, name="hypervisor-there")
    ssh: SshSettings | None = None
    keep_source_disks: bool = False
    tool: str | None = None
    tools: ToolSettings | None = None
    step: Step = Step.NONE
    memos: Mapping[str, Mapping[str, Any]] = {}
    peer_is_fenced: bool = msgspec.field(default=False, name="peer-is-fenced")
    peer_was_told: bool = msgspec.field(default=False, name="peer-was-told")
    offline: bool = False
    forgotten: bool = False


class TargetDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What the target of a migration needs.

    Attributes:
        version: Of these fields.
        domain: The domain as it is to be here; None of a migration that was never heard of.
        paused: Whether its user had paused the guest, which then stays so.
        hypervisor: The name of this host's.
    """

    version: int = VERSION
    domain: Domain | None = None
    paused: bool = False
    hypervisor: str = _QEMU


Details: TypeAlias = SourceDetails | TargetDetails
_OF: Final[Mapping[Role, type[Details]]] = {
    Role.SOURCE: SourceDetails,
    Role.TARGET: TargetDetails,
}


class TooNewError(Exception):
    """A newer Entourage wrote it."""


def _from_1(said: dict[str, Any]) -> dict[str, Any]:
    """Before 2, details had no version, and else the same fields."""
    return said


_FORWARD: Final[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {1: _from_1}


def encode(details: Details | None) -> str:
    """As it is written."""
    return msgspec.json.encode(details or {}).decode()


def decode(role: Role, text: str | bytes) -> Details:
    """What was written for that role, brought forward.

    Raises:
        msgspec.DecodeError, RecursionError: It is something else, or nested too deep.
        TooNewError: A newer Entourage wrote it.
    """
    said = msgspec.json.decode(text)
    if not isinstance(said, dict):
        raise msgspec.ValidationError("it is no object")
    fields = cast("dict[str, Any]", said)
    version = fields.get("version", 1)
    if not isinstance(version, int) or version < 1:
        raise msgspec.ValidationError(f"its version is {version!r}")
    if version > VERSION:
        raise TooNewError(f"details of version {version}")
    for old in range(version, VERSION):
        fields = _FORWARD[old](fields) | {"version": old + 1}
    return msgspec.convert(fields, _OF[role])

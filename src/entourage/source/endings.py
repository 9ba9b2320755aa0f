"""What a user is told of a migration that ended in none of the usual ways."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import NoReturn

from entourage.errors import (
    GuestEnded,
    HypervisorError,
    InDoubt,
    ours,
)
from entourage.hypervisors.registry import start_command
from entourage.source.doings import DOINGS
from entourage.source.session import Session

_TELLS_WITHIN = 15.0  # seconds for a machine that has ended to say why
_SHUT_DOWN = "guest-shutdown"  # QEMU's word, and ours for libvirt's
_REBOOTED = "guest-reboot"  # same; only under Xen does a guest that reboots lose its machine


async def guest_ended(session: Session, problems: Sequence[str]) -> GuestEnded:
    """What is told of a guest that has ended by itself while it moved.

    Args:
        session: All that is open.
        problems: What was not put back.
    """
    name, why = session.machine.domain.name, "its machine is gone"
    with contextlib.suppress(TimeoutError, HypervisorError):
        async with asyncio.timeout(_TELLS_WITHIN):
            why = await session.machine.died()
    left = "" if problems else f", and nothing of it is left on {session.target}"
    if _REBOOTED in why:
        return GuestEnded(
            f"{name} has ended while it moved, and its hypervisor started it again, as after a"
            f" reboot: it has a new machine on {session.source}{left}",
            host=session.source,
            remedy=f"`entourage migrate {name} {session.target}` moves that one",
            recovery_errors=problems,
        )
    what = "was shut down from inside" if _SHUT_DOWN in why else f"has ended ({why})"
    return GuestEnded(
        f"{name} {what} while it moved; it is off on {session.source}{left}",
        host=session.source,
        remedy=f"`{start_command(session.hypervisor, name)}` starts it",
        recovery_errors=problems,
    )


def raise_doubt(session: Session, error: Exception, *, runs_there: bool) -> NoReturn:
    """Tell of a failure on this host once the target may have been told to run the guest.

    Args:
        session: All that is open.
        error: What has failed, a bug perhaps.
        runs_there: The target has said that it runs the guest.

    Raises:
        InDoubt: Always.
    """
    name, target = session.machine.domain.name, session.target
    doing = DOINGS[session.kind]
    said = (
        f"{name} {doing.done} {target}, and this host could not act on it"
        if runs_there
        else f"{target} was told {doing.asked} {name}, and this host cannot go on"
    )
    cause = ours(error)
    raise InDoubt(
        f"{said}: {cause}",
        host=session.host,
        remedy=f"mend that, then `entourage recover {name}` on {session.host}",
    ) from cause

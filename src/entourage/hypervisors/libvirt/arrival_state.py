"""What there is of a domain that was being built, looked at and not believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entourage.errors import HypervisorError
from entourage.handover.values import Guest
from entourage.hypervisors.libvirt.connection import RefusedError, ask
from entourage.hypervisors.libvirt.constants import (
    PAUSED_BY_USER,
    STATS_AT_ONCE,
    STATS_OF_BLOCKS,
    State,
)

_ACTIVE = frozenset({State.RUNNING, State.BLOCKED, State.PAUSED, State.SHUTDOWN, State.SUSPENDED})


class Seen:
    """What there is of a domain that was being built.

    Attributes:
        guest: See ``Incoming.attach``.
        under_way: libvirtd still works on it, and may change it by itself.
        paused: It stands still, for whatever reason.
    """

    def __init__(self, guest: Guest, *, under_way: bool = False, paused: bool = False) -> None:
        self.guest = guest
        self.under_way = under_way
        self.paused = paused


async def look_at(raw: Any) -> Seen:
    """Look at what is there now."""
    if raw is None:
        return Seen(Guest.STOPPED)

    def look() -> tuple[int, bool, bool]:
        state: int = raw.state(0)[0]
        working = state in _ACTIVE and bool(raw.jobInfo()[0])
        return state, bool(raw.isPersistent()), working

    try:
        state, defined, working = await ask(look)
    except RefusedError:  # it went away meanwhile
        return Seen(Guest.STOPPED, under_way=True)
    if state in {State.RUNNING, State.BLOCKED}:
        return Seen(Guest.RUNNING)
    if state not in _ACTIVE:
        return Seen(Guest.DEAD if defined else Guest.STOPPED)
    if not defined:
        return Seen(Guest.STOPPED, under_way=True)
    # Defined and paused: Finish is about to let it run, or its user has paused it since.
    return Seen(Guest.RUNNING, under_way=working, paused=True)


async def check_never_ran(connection: Any, raw: Any, why: int) -> None:
    """See that a domain which is being restored has not run: one that used a disk has.

    QEMU counts what the guest asks of its disks, from the machine's beginning. One that has asked
    nothing may have run all the same, and has left nothing.

    Args:
        connection: ``libvirt.virConnect``.
        raw: ``libvirt.virDomain``, which stands still.
        why: libvirt's reason for that.

    Raises:
        HypervisorError: Somebody has let it run, and has paused it again, or that is not known.
    """
    ran = await _has_used_a_disk(connection, raw)
    if ran or (ran is None and why == PAUSED_BY_USER):
        name = raw.name()
        raise HypervisorError(
            f"{name} {'has' if ran else 'may have'} run since it was restored, and is paused; its"
            " save can be restored again",
            remedy=f"to give up what it has done since, `virsh destroy {name}`, then `entourage"
            f" recover {name}`; to have it go on here, remove the save, then `virsh resume {name}`",
        )


async def _has_used_a_disk(connection: Any, raw: Any) -> bool | None:
    """None where that is not known: it has a job, or QEMU does not answer."""
    try:
        told = await ask(connection.domainListGetStats, [raw], STATS_OF_BLOCKS, STATS_AT_ONCE)
    except RefusedError:  # it went away meanwhile
        return None
    stats: Mapping[str, Any] = told[0][1] if told else {}
    counts = [
        count
        for name, count in stats.items()
        if name.startswith("block.") and name.endswith((".rd.reqs", ".wr.reqs"))
    ]
    return any(counts) if counts or stats.get("block.count") == 0 else None

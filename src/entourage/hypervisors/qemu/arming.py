"""QEMU's deadman: what ``deadman.py`` beside this is told when it is armed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from entourage.hypervisors import deadman
from entourage.hypervisors.qemu.paths import Places

_BACKEND = Path(__file__).with_name("deadman.py")


async def arm_deadman(
    where: Places,
    *,
    name: str,
    run_again: bool,
    budget: float | None,
    mirrors: Sequence[str],
    lock: int | None,
) -> deadman.Deadman:
    """Start it; it watches from when this returns.

    Args:
        where: The domain's places.
        name: Tells its process and its scope from others.
        run_again: Whether the guest is to run; one that its user has paused is not.
        budget: Seconds that the guest may stand still; None: without limit.
        mirrors: The nodes (and jobs) of the domain's mirrors, to be cut off first.
        lock: A descriptor that it keeps open until it has spoken.

    Raises:
        HypervisorError: It does not come up.
    """
    return await deadman.Deadman.arm(
        _BACKEND,
        [str(where.guard), *mirrors],
        run_again=run_again,
        budget=budget,
        name=name,
        log=where.log,
        lock=lock,
    )

"""A target that falls silent while QEMU connects the copies of the disks to it.

libvirt has QEMU connect them, and QEMU does so in its main loop: the guest stands still until TCP
gives up, minutes later, and neither QEMU nor libvirt has a limit for that (libvirt 9.0 to 11.3,
QEMU 7.2 to 10.0). That the way is open was proven at TEST; it may have closed since. So this
process looks at QEMU's sockets and hangs up. Once a copy is under way, it does not hold QEMU up.
"""

from __future__ import annotations

import asyncio

from entourage.errors import HypervisorError
from entourage.hosts.hangup import Calls
from entourage.hosts.threads import in_thread
from entourage.hypervisors.libvirt.job import Job

_LOOK_EVERY = 0.05
# Seconds that the guest may stand still for; what remains of a second is for QEMU to go on.
_SILENT_AFTER = 0.6


def watched(job: Job) -> asyncio.Task[None]:
    """``fallen_silent``, begun; whoever is interrupted meanwhile need not look how it ended."""
    task = asyncio.create_task(fallen_silent(job))
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def fallen_silent(job: Job) -> None:
    """Wait until QEMU is held up by a silent target, hang up, and say so; never returns else.

    Raises:
        HypervisorError: It was hung up, and libvirt will give up.
    """
    while job.calls is not None and not job.disks.under_way:
        held_up = job.disks.unanswered > _SILENT_AFTER
        if await in_thread(_hang_up, job.calls, job.port, held_up=held_up):
            raise HypervisorError(
                f"{job.host} fell silent while the copies of the disks were connected, so that the"
                " guest would have stood still",
                remedy="see whether it is alive, and what filters the way to its TCP ports",
            )
        await asyncio.sleep(_LOOK_EVERY)
    await asyncio.get_running_loop().create_future()


def _hang_up(calls: Calls, memory: int | None, *, held_up: bool) -> int:
    return calls.hang_up_on_silence(_SILENT_AFTER, held_up=held_up, one_way=memory)

"""Takes the images of a guest that has arrived, and stays paused.

Images are taken as the guest is let run: that is what ``late-block-activate`` asks for, so that the
source can go on with those that both hosts share. A guest that its user had paused is not let run;
and a QEMU before 10.0 that is told to move again without its images ends itself, and the guest
(``bdrv_inactivate_recurse: Assertion '!(bs->open_flags & BDRV_O_INACTIVE)'``; seen in 7.2).
"""

from __future__ import annotations

import contextlib
from functools import partial

from entourage.domain import Domain
from entourage.hypervisors.qemu.cmdline import node_name
from entourage.hypervisors.qemu.exports import is_gone
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.qmp import Monitor
from entourage.hypervisors.qemu.sockets import listening
from entourage.hypervisors.qmp_error import CommandError

_COMMAND_SINCE = (10, 0, 0)
_EXPORT, _SERVER = "take", "take"


async def take_images(monitor: Monitor, domain: Domain, where: Places) -> None:
    """Have QEMU take the images of a guest that stands still; again is no error.

    Raises:
        HypervisorError: QEMU says no: another has one of them.
    """
    if monitor.version >= _COMMAND_SINCE:
        await monitor.execute("blockdev-set-active", {"active": True})
        return
    if not domain.block:
        return
    # An older one takes an image where it is to be exported. Nobody is told of that server; where
    # there is one already, its user's, that will do as well.
    started = await _start_server(monitor, where)
    try:
        for disk in domain.block:
            with contextlib.suppress(CommandError):  # of a process that was killed half-way
                await monitor.execute("block-export-del", {"id": _EXPORT, "mode": "hard"})
            node = node_name(domain, disk)
            monitor.known.exports_gone.discard(_EXPORT)
            await monitor.execute(
                "block-export-add",
                {"type": "nbd", "id": _EXPORT, "node-name": node, "name": node, "writable": False},
                device=disk.label,
            )
            await monitor.execute("block-export-del", {"id": _EXPORT, "mode": "hard"})
            await monitor.until(partial(is_gone, _EXPORT))
    finally:
        if started:
            await monitor.execute("nbd-server-stop")


async def _start_server(monitor: Monitor, where: Places) -> bool:
    """Have QEMU serve exports to nobody; False where it serves some already."""
    path = where.run / "take.sock"
    with listening(path) as server:
        path.unlink()
        await monitor.give(_SERVER, server.fileno())
        address = {"type": "fd", "data": {"str": _SERVER}}
        try:
            await monitor.execute("nbd-server-start", {"addr": address})
        except CommandError:
            return False
    return True

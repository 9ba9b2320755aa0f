"""Disks of a machine that is being built here, exported for the mirrors of the source."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

from entourage.domain import Block
from entourage.errors import HypervisorError
from entourage.hosts.account import Account
from entourage.hosts.local import listening_here
from entourage.hosts.process import ProcessHandle
from entourage.hosts.resources import Ledger
from entourage.hosts.tcp import listening_in_range
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DataPlane, Export
from entourage.hypervisors.qemu import keys
from entourage.hypervisors.qemu.access import let_user_write
from entourage.hypervisors.qemu.binary import tls_in_threads
from entourage.hypervisors.qemu.cmdline import block_node, disk_index, export_name
from entourage.hypervisors.qemu.launch import Up, host_things
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.qmp import Known, Monitor

EXPORT_THREAD = "copies"
"""Takes the mirrors' writes: QEMU's main thread is busy with memory for many ms at a time, and a
guest whose write waits for the target would wait for that."""


class Exports:
    """The NBD server of a machine, which takes the mirrors' writes until memory has landed.

    Args:
        where: The domain's places.
        ledger: Takes what QEMU's user is given before it is.
    """

    def __init__(self, where: Places, ledger: Ledger) -> None:
        self._where = where
        self._ledger = ledger
        self._account: Account | None = None
        self._machine: tuple[Up, DataPlane] | None = None
        self._host = ""
        self._serves: tuple[str, int] | None = None  # a socket's path, or a port
        self._starting = asyncio.Lock()
        self._giving = asyncio.Lock()
        self._allow_core: Callable[[], None] = lambda: None
        self._writable: list[str] = []
        self._thread: dict[str, str | bool] = {}

    def stands(self, up: Up, plane: DataPlane, host: str, account: Account | None) -> None:
        """The machine stands: from here on its disks can be exported.

        Args:
            up: The machine.
            plane: How disks travel.
            host: The numeric address to listen at.
            account: Whom QEMU runs as; None: as Entourage.
        """
        self._machine, self._host, self._account = (up, plane), host, account

    async def export(self, disk: Block) -> Export:
        """Open a disk of the built machine for the mirror's writes."""
        up, plane = self._built()
        monitor, domain = up.monitor, up.running.domain
        async with self._starting:
            if self._serves is None:
                self._serves = await self._start_server(monitor, plane)
                self._allow_core = _without_core(up.process)
                # Not for what is copied out of a save: no guest waits for it, and its client goes
                # as soon as it is done, of which an export in a thread makes QEMU abort (below).
                threads = plane.secret is None or tls_in_threads(monitor.version)
                if plane.local is None and threads:
                    await monitor.execute(
                        "object-add", {"qom-type": "iothread", "id": EXPORT_THREAD}
                    )
                    self._thread = {"iothread": EXPORT_THREAD, "fixed-iothread": True}
        disk = domain.block[disk_index(domain, disk)]  # as it is here
        export = export_name(domain, disk)
        async with self._giving:
            await let_user_write(disk, self._where, self._ledger, self._account)
        # A node of its own, for the guest's must stay out of other threads. That one is not active
        # and holds no lock before the guest runs: another can write to the file until all is there.
        things = host_things(domain, self._where)
        node = block_node(disk, export, things, readonly=False)
        await monitor.execute("blockdev-add", node, device=disk.label)
        self._writable.append(export)
        await monitor.execute(
            "block-export-add",
            {
                "type": "nbd",
                "id": export,
                "node-name": export,
                "name": export,
                "writable": True,
                **self._thread,
            },
            device=disk.label,
        )
        path, port = self._serves
        return Export(host=plane.address, port=port, name=export, socket=path)

    async def close(self) -> None:
        """Close all exports, where there are any: the guest's disks are the machine's alone.

        No export ends before the one before it is gone, or QEMU 11.1 aborts.

        As an export ends, its node leaves the export's thread. QEMU has the lock of its block graph
        meanwhile; and if the node is qcow2, it waits for a timer of that, and does what else is
        due: the next export's end, which wants the same lock (``bdrv_graph_wrlock: Assertion
        '!has_writer' failed``). Seen in 11.1.3; 10.0.13 has no such wait.
        """
        if self._serves is None:
            return
        up, _ = self._built()
        monitor = up.monitor
        # The server ends the last one. Not where that has no thread: it would wait for itself.
        alone = self._writable[:-1] if self._thread else self._writable
        for name in alone:
            await monitor.execute("block-export-del", {"id": name, "mode": "hard"})
            await monitor.until(partial(is_gone, name))
        # All at once: QEMU does them in this order.
        await asyncio.gather(
            monitor.execute("nbd-server-stop"),
            *(monitor.execute("blockdev-del", {"node-name": name}) for name in self._writable),
        )
        if path := self._serves[0]:
            await in_thread(Path(path).unlink, missing_ok=True)
        self._serves = None
        self._writable.clear()
        self._allow_core()

    async def _start_server(self, monitor: Monitor, plane: DataPlane) -> tuple[str, int]:
        """Returns where it listens: a socket's path and 0, or nothing and a port."""
        tls = {} if plane.secret is None else {"tls-creds": keys.OBJECT}
        path = "" if plane.local is None else plane.local.disk_socket()
        if path:
            self._ledger.record("scratch", path=path)
        with (
            listening_here(Path(path))
            if path
            else listening_in_range(self._host, plane.ports) as server
        ):
            await monitor.give("nbd", server.fileno())
            address = {"type": "fd", "data": {"str": "nbd"}}
            await monitor.execute(
                "nbd-server-start", {"addr": address, "max-connections": 0, **tls}
            )
            return (path, 0) if path else ("", int(server.getsockname()[1]))

    def _built(self) -> tuple[Up, DataPlane]:
        if self._machine is None:
            raise HypervisorError("the machine is not built")
        return self._machine


def _without_core(process: ProcessHandle) -> Callable[[], None]:
    """Have QEMU dump no memory into a core; returns what undoes that.

    A source that goes back cuts its mirrors off at once. An export in a thread of its own makes
    QEMU (7.2.14 and later 7.2) abort then: what is killed in a moment need not fill this host's
    disk with the guest's memory before.
    """
    with contextlib.suppress(OSError):  # it has ended
        try:
            before = resource.prlimit(process.pid, resource.RLIMIT_CORE)
            resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, before[1]))
        except PermissionError:
            # Another user's, and root is without CAP_SYS_RESOURCE here. See core(5).
            memory = Path(f"/proc/{process.pid}/coredump_filter")
            dumped = memory.read_text().strip()
            memory.write_text("0")
            return partial(_undo, process, lambda: memory.write_text(f"0x{dumped}"))
        return partial(
            _undo, process, lambda: resource.prlimit(process.pid, resource.RLIMIT_CORE, before)
        )
    return lambda: None


def _undo(process: ProcessHandle, undo: Callable[[], object]) -> None:
    if not process.has_ended:
        with contextlib.suppress(OSError):  # it has ended now
            undo()


def is_gone(export: str, known: Known) -> bool | None:
    """For ``Monitor.until``: whether an export is no more."""
    return export in known.exports_gone or None

"""Images that are served to one client each, a process of this host, by ``qemu-nbd``."""

from __future__ import annotations

import signal
import uuid
from pathlib import Path

from entourage.errors import DeviceError, EntourageError, HypervisorError
from entourage.hosts import programs
from entourage.hosts.resources import MARKER, Ledger, end_processes
from entourage.hosts.threads import in_thread

_STARTS_WITHIN = 30.0  # seconds
_WRITES_WITHIN = 300.0  # seconds for what is still in memory to be written to slow storage


class NbdServer:
    """One image, served at a unix socket that only this user can connect to.

    Args:
        ledger: Takes socket and process before they are made.
        socket: The path of the socket.
    """

    def __init__(self, ledger: Ledger, socket: str) -> None:
        self._ledger = ledger
        self._socket = socket
        self._marker = uuid.uuid4().hex

    async def serve(self, path: Path, image_format: str, name: str) -> None:
        """Serve an image, for writing; returns once a client can connect.

        Args:
            path: The image.
            image_format: ``raw`` or ``qcow2``.
            name: The export's.

        Raises:
            DeviceError: It cannot be served.
        """
        await in_thread(self._make_room)
        self._ledger.record("scratch", path=self._socket)
        self._ledger.record("process", marker=self._marker)
        status, _, said = await programs.run(
            "qemu-nbd",
            *("--fork", "--socket", self._socket, "--export-name", name, "--format", image_format),
            # What the source says is zero takes no room here.
            *("--discard=unmap", "--detect-zeroes=unmap", "--", str(path)),
            environment={MARKER: self._marker},
            umask=0o077,
            within=_STARTS_WITHIN,
        )
        if status:
            raise DeviceError(f"{path} cannot be served: {said or f'status {status}'}")

    async def kill(self) -> None:
        """End it, whatever it has not written yet; again is no error."""
        await end_processes(self._marker)
        await in_thread(self._forget)

    async def end(self) -> None:
        """Write what is still in memory, and end; again is no error.

        Raises:
            HypervisorError: The storage does not answer.
        """
        try:
            await end_processes(self._marker, patience=_WRITES_WITHIN, how=signal.SIGTERM)
        except EntourageError as error:
            raise HypervisorError(
                f"the storage has not answered for {_WRITES_WITHIN:g} s",
                remedy="see whether its server is there",
            ) from error
        await in_thread(self._forget)

    def _make_room(self) -> None:
        Path(self._socket).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._forget()

    def _forget(self) -> None:
        Path(self._socket).unlink(missing_ok=True)

"""What a carrier of Xen's knows of its migration, and how it gives it up, from wherever it is."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from pathlib import Path
from typing import Any

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.process import ProcessHandle, last_lines
from entourage.hypervisors.base import DataPlane
from entourage.hypervisors.xen.constants import AWAY
from entourage.hypervisors.xen.hostdevices import HostDevices
from entourage.hypervisors.xen.libxl import Life, life
from entourage.hypervisors.xen.sender import Word
from entourage.hypervisors.xen.streams import DiskCopy, TransportEnd
from entourage.hypervisors.xen.xenstore import RELEASED, XenStore
from entourage.hypervisors.xen.xl import run, xl
from entourage.settings.model import Settings

_GIVES_UP_WITHIN = 60.0  # seconds for xl to end once its transport has


class Rollback:
    """See the module.

    Args:
        store: This host's xenstore.
        domid: The domain's number here; None where it is gone.
        domain: What xl says of it.
        settings: This host's.
        config: xl's own configuration of it (JSON).
        was_running: Whether its user lets the guest run.
    """

    def __init__(
        self,
        store: XenStore,
        domid: int | None,
        domain: Domain,
        settings: Settings,
        config: dict[str, Any],
        *,
        was_running: bool,
    ) -> None:
        self._store = store
        self._domid = domid
        self._domain = domain
        self._settings = settings
        self._config = config
        self._was_running = was_running
        self._log = Path(settings.paths.log, f"{domain.name}.log")
        self._log_from = 0
        self._directory = Path(settings.paths.run, f"xen-{domain.uuid}")
        self._plane: DataPlane | None = None
        self._lock: int | None = None
        self._copies: dict[str, DiskCopy] = {}
        self._carried: list[str] = []
        self._target: Domain | None = None
        self._end: TransportEnd | None = None
        self._xl: ProcessHandle | None = None
        self._last_copies: asyncio.Task[None] | None = None
        self._host_devices: HostDevices | None = None

    @property
    def domain(self) -> Domain:
        """The running configuration."""
        return self._domain

    @property
    def was_running(self) -> bool:
        """Always true: TEST refuses a domain that its user has paused."""
        return self._was_running

    def _life(self) -> Life | None:
        return None if self._domid is None else life(self._domid)

    async def abort(self) -> None:
        """Give the migration up at whatever point: the guest runs here again.

        xl itself lets it run, once its transport has ended as the other end of a migration that
        failed; where xl is gone, libxl does.

        Raises:
            HypervisorError: The domain is gone, or does not go on.
        """
        if self._end is not None:
            self._end.say(Word.FAIL)
        await self._end_copies()
        if self._xl is not None:
            try:
                async with asyncio.timeout(_GIVES_UP_WITHIN):
                    await self._xl.ended()
            except TimeoutError:
                self._xl.kill()
                await self._xl.ended()
        await self._run_again()
        await self._tidy()

    async def _tidy(self) -> None:
        """Remove what only a migration needs, also what one left that was killed."""
        if self._end is not None:
            await self._end.close()
            self._end = None
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _run_again(self) -> None:
        now = self._life()
        if now is None or now.ended or self._domid is None:
            raise HypervisorError(f"the machine of {self._domain.name} is gone")
        if now.suspended:
            program = (sys.executable, "-I", "-m", "entourage.hypervisors.xen.libxl")
            await run(*program, "resume", str(self._domid))
            now = self._life()
            if now is None or now.suspended:
                raise HypervisorError(
                    f"{self._domain.name} does not go on",
                    remedy=f"`xl list` and {self._log} tell more",
                )
        if (await self._store.name(self._domid)).endswith(AWAY):
            await xl("rename", str(self._domid), self._domain.name)

    async def _end_copies(self) -> None:
        if self._last_copies is not None:
            self._last_copies.cancel()
            await asyncio.gather(self._last_copies, return_exceptions=True)
            self._last_copies = None
        await asyncio.gather(*(copy.close() for copy in self._copies.values()))
        self._copies.clear()

    async def _until_gone(self) -> None:
        """Wait until there is no such domain any more."""
        released = await self._store.watch(RELEASED)
        while self._life() is not None:
            released.clear()
            if self._life() is not None:
                await released.wait()

    async def _destroy(self) -> None:
        """End the copy here; what is gone already is no error."""
        now = self._life()
        if now is None or self._domid is None:
            return
        with contextlib.suppress(HypervisorError):
            await xl("destroy", str(self._domid))
        if self._life() is not None:
            raise HypervisorError(
                f"xl does not end {self._domain.name}", remedy=f"`xl destroy {self._domid}`"
            )

    def _why(self) -> str:
        """What xl said last."""
        return last_lines(self._log, self._log_from)

    def _stream(self) -> TransportEnd:
        if self._end is None:
            raise HypervisorError("the migration has not begun")
        return self._end

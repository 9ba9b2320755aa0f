"""``xl migrate`` of one domain under way: xl, and the transport that it runs in the place of ssh.

Both outlive this process: they are the deadman.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from entourage.errors import HypervisorError
from entourage.hosts.process import ProcessHandle, last_lines, launch
from entourage.hosts.threads import in_thread
from entourage.hypervisors.xen import xl as xl_program
from entourage.hypervisors.xen.handle import Handle
from entourage.hypervisors.xen.sender import Word
from entourage.hypervisors.xen.streams import TransportEnd

_RENAMES_WITHIN = 10.0  # seconds for xl to take its copy out of the way
_GIVES_UP_WITHIN = 60.0  # seconds for xl to end once its transport has
_RELEASES_WITHIN = 60.0


class Migrating:
    """xl and its transport; neither runs before ``begin``.

    Args:
        handle: The domain.
        directory: Of what only a migration of it needs.
    """

    def __init__(self, handle: Handle, directory: Path) -> None:
        self._handle = handle
        self._directory = directory
        self._log_from = 0
        self._end: TransportEnd | None = None
        self._xl: ProcessHandle | None = None
        self._alive: asyncio.Task[NoReturn] | None = None

    @property
    def passed(self) -> int:
        """Bytes that have gone through."""
        return self._end.passed if self._end else 0

    @property
    def stream(self) -> TransportEnd:
        """The transport; raises HypervisorError before the migration has begun."""
        if self._end is None:
            raise HypervisorError("the migration has not begun")
        return self._end

    async def begin(self, order: Mapping[str, Any], lock: int | None) -> None:
        """Have xl begin; returns when its stream flows.

        Args:
            order: What the transport is to do.
            lock: A descriptor that xl keeps open.

        Raises:
            HypervisorError: xl refuses.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._end = TransportEnd(self._directory / "transport")
        await self._end.listen(dict(order))
        self._alive = asyncio.create_task(self._end.say_alive())
        log = self._handle.log
        with contextlib.suppress(OSError):
            self._log_from = log.stat().st_size
        # xl gives this to a shell, which becomes the program: every word is quoted.
        program = (sys.executable, "-I", "-m", "entourage.hypervisors.xen.transport")
        rune = "exec " + shlex.join([*program, str(self._end.path)])
        name = f"{self._handle.domain.uuid}.{secrets.token_hex(4)}.xl"
        pid = await launch(
            [xl_program.find() or "xl", "migrate", "-s", "", str(self._handle.domid), rune],
            marker=name,
            log=log,
            unit=f"entourage-{name}",
            pass_fds=() if lock is None else (lock,),
            environment={"PATH": xl_program.search_path()},
        )
        self._xl = ProcessHandle.open(pid)
        await self.beside(self._end.hears(Word.BEGUN))

    async def beside(self, work: Any) -> Any:
        """Do something, unless xl or its transport ends first."""
        working = asyncio.ensure_future(work)
        others: list[asyncio.Future[Any]] = [asyncio.ensure_future(self.stream.gone())]
        if self._xl is not None:
            others.append(asyncio.ensure_future(self._xl.ended()))
        try:
            await asyncio.wait({working, *others}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            log = self._handle.log
            said = self.stream.why or last_lines(log, self._log_from) or "it says nothing"
            raise HypervisorError(f"xl does not go on: {said}", remedy=f"see {log}")
        finally:
            for task in (working, *others):
                task.cancel()

    def stopped(self) -> None:
        """The domain is suspended: its transport lets it run again where this process is frozen."""
        self.stream.say(Word.STOPPED)

    async def hold(self) -> None:
        """Have xl say GO: it hears READY, renames its copy, and lets it run only after a report.

        Raises:
            HypervisorError: It does not.
        """
        end = self.stream
        end.say(Word.HOLD)
        try:
            async with asyncio.timeout(_RENAMES_WITHIN):
                await self.beside(end.hears(Word.HELD))
        except TimeoutError as error:
            raise HypervisorError("xl does not take its copy out of the way") from error

    async def release(self) -> None:
        """The domain runs on the target: xl destroys its copy here, if it is still there."""
        end, ours = self._end, self._xl
        if end is not None and ours is not None and not end.has_gone:
            end.say(Word.RELEASE)
            try:
                async with asyncio.timeout(_RELEASES_WITHIN):
                    await ours.ended()
            except TimeoutError:
                ours.kill()

    def fail(self) -> None:
        """End the transport as the other end of a migration that failed: xl lets the domain run."""
        if self._end is not None:
            self._end.say(Word.FAIL)

    async def ended(self) -> None:
        """Wait until xl has ended; one that does not is killed."""
        if self._xl is None:
            return
        try:
            async with asyncio.timeout(_GIVES_UP_WITHIN):
                await self._xl.ended()
        except TimeoutError:
            self._xl.kill()
            await self._xl.ended()

    async def tidy(self) -> None:
        """Remove what only a migration needs, also what one left that was killed."""
        self._say_no_more()
        if self._end is not None:
            await self._end.close()
            self._end = None
        await in_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def close(self) -> None:
        """Let go of both without ending them."""
        self._say_no_more()
        if self._end is not None:
            await self._end.close()
        if self._xl is not None:
            self._xl.close()

    def _say_no_more(self) -> None:
        if self._alive is not None:
            self._alive.cancel()
            self._alive = None

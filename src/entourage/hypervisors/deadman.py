"""The deadman (as in dead man's switch), seen from the process that it watches.

The deadman itself is a program of its own, ``deadman_program.py``; what it does to the guest is its
backend's (``qemu/deadman.py``, ``libvirt/deadman.py``). It is told by one letter each, and answers
with the capital: ``g`` GO may be sent, never resume; ``d`` all is over, end; ``w`` do you act? The
end of file means that the process that it watches is dead; that it is frozen shows in that it says
no ``h`` any more. Once it acts it takes no more letters; its end of file says that it has acted.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from entourage.errors import HypervisorError, plain_words
from entourage.hosts.process import launch

_PROGRAM = Path(__file__).with_name("deadman_program.py")
_START_PATIENCE = 10.0
_ANSWER_PATIENCE = 0.5
_LIVES_EVERY = 0.2  # seconds
_ACTS_WITHIN = 15.0  # seconds, where the hypervisor answers
_IT = "the process that would resume the guest if this one died"
_ITS_LAST_WORDS = "what it said last is in the domain's log"


class Deadman:
    """A process that lets the guest run again when this one dies. Use ``Deadman.arm``."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._living: asyncio.Task[None] | None = None

    @classmethod
    async def arm(
        cls,
        backend: Path,
        arguments: Sequence[str],
        *,
        run_again: bool,
        budget: float | None,
        name: str,
        log: Path,
        lock: int | None,
    ) -> Deadman:
        """Start it; it watches from when this returns.

        Args:
            backend: The backend's file, which defines ``open_guest``; see ``deadman_program.py``.
            arguments: What ``open_guest`` is given.
            run_again: Whether the guest is to run; one that its user has paused is not.
            budget: Seconds that the guest may stand still before GO: after them, a process that is
                frozen does not hold it any longer. None: there is no limit.
            name: Tells its process and its scope from others.
            log: Takes what it says.
            lock: A descriptor that it keeps open until it has spoken.

        Raises:
            HypervisorError: It does not come up.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)  # noqa: FBT003 - the standard library's signature
        deadman = cls(ours)
        python = [sys.executable, "-I", "-S"]
        limit = f"{budget:g}" if budget is not None and run_again else ""
        told = [str(theirs.fileno()), "1" if run_again else "0", limit, str(backend)]
        try:
            with theirs:
                descriptors = (theirs.fileno(),) if lock is None else (theirs.fileno(), lock)
                await launch(
                    [*python, str(_PROGRAM), *told, *arguments],
                    marker=f"{name}.deadman",
                    log=log,
                    unit=f"entourage-{name}-deadman",
                    pass_fds=descriptors,
                )
            await deadman._hear(b"A", _START_PATIENCE)
        except BaseException:
            ours.close()
            raise
        if limit:
            deadman._living = asyncio.create_task(deadman._live())
        return deadman

    async def _live(self) -> None:
        """Show again and again that this process is not frozen."""
        while True:
            with contextlib.suppress(OSError):  # it is frozen itself, or gone: ``disarm`` tells
                self._end.send(b"h")
            await asyncio.sleep(_LIVES_EVERY)

    def fall_silent(self) -> None:
        """Show no more that this process lives: GO is about to be said, or all is over."""
        if self._living is not None:
            self._living.cancel()
            self._living = None

    async def disarm(self) -> None:
        """It never resumes the guest from when this returns.

        Raises:
            HypervisorError: It did not say so: it has died, or acts already, or has acted.
        """
        self.fall_silent()
        try:
            self._end.send(b"g")
        except OSError as error:
            raise HypervisorError(
                f"{_IT} is gone: {plain_words(error)}", remedy=_ITS_LAST_WORDS
            ) from error
        await self._hear(b"G", _ANSWER_PATIENCE)

    async def not_acting(self) -> None:
        """Wait until it is certain that it does not act now: it watches, or it has ended.

        This process may have been frozen for so long that it acts already. A hypervisor that is
        told by both at once to give one migration up may not survive that (libvirtd 9.0).
        """
        with contextlib.suppress(OSError):  # it takes nothing: it acts, or has ended
            self._end.send(b"w")
        with contextlib.suppress(HypervisorError):  # ended, or silent for so long
            await self._hear(b"W", _ACTS_WITHIN)

    async def dismiss(self) -> None:
        """All is over, the guest runs or is gone: it ends and gives up the lock."""
        self.fall_silent()
        try:
            self._end.send(b"d")
            await self._hear(b"D", _ANSWER_PATIENCE)
            await self._hear(b"", _ANSWER_PATIENCE)
        except (OSError, HypervisorError):
            return  # gone, or it will see the end of file and find a guest that runs
        finally:
            self._end.close()

    def close(self) -> None:
        """Let go of it as if this process had died: unless disarmed, it acts."""
        self.fall_silent()
        self._end.close()

    async def _hear(self, wanted: bytes, patience: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience):
                heard = await loop.sock_recv(self._end, 1)
        except TimeoutError as error:
            raise HypervisorError(f"{_IT} does not answer", remedy=_ITS_LAST_WORDS) from error
        except OSError as error:
            raise HypervisorError(
                f"{_IT} is gone: {plain_words(error)}", remedy=_ITS_LAST_WORDS
            ) from error
        if heard != wanted:
            raise HypervisorError(f"{_IT} is gone", remedy=_ITS_LAST_WORDS)

"""The dead hand, seen from the process that it watches; the hand itself is ``lifeline.py``."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from entourage.errors import HypervisorError
from entourage.hosts.process import launch
from entourage.hypervisors.qemu.paths import Places

_PROGRAM = Path(__file__).with_name("lifeline.py")
_START_PATIENCE = 10.0
_ANSWER_PATIENCE = 0.5


class DeadHand:
    """A process that lets the guest run again when this one dies. Use ``DeadHand.arm``."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @classmethod
    async def arm(
        cls,
        where: Places,
        *,
        name: str,
        run_again: bool,
        mirrors: Sequence[str],
        lock: int | None,
    ) -> DeadHand:
        """Start it; it watches from when this returns.

        Args:
            where: The domain's places.
            name: Tells its process and its scope from others.
            run_again: Whether the guest is to run; one that its user has paused is not.
            mirrors: The nodes (and jobs) of the domain's mirrors, to be cut off first.
            lock: A descriptor that it keeps open until it has spoken.

        Raises:
            HypervisorError: It does not come up.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)  # noqa: FBT003 - the standard library's signature
        hand = cls(ours)
        try:
            with theirs:
                descriptors = (theirs.fileno(),) if lock is None else (theirs.fileno(), lock)
                await launch(
                    [
                        sys.executable, "-I", "-S", str(_PROGRAM),
                        str(theirs.fileno()), "1" if run_again else "0", str(where.guard),
                        *mirrors,
                    ],
                    marker=f"{name}.dead-hand",
                    log=where.log,
                    unit=f"entourage-{name}-dead-hand",
                    pass_fds=descriptors,
                )  # fmt: skip
            await hand._hear(b"A", _START_PATIENCE)
        except BaseException:
            ours.close()
            raise
        return hand

    async def disarm(self) -> None:
        """It never resumes the guest from when this returns.

        Raises:
            HypervisorError: It did not say so: it has died, or acts already.
        """
        try:
            self._end.send(b"g")
        except OSError as error:
            raise HypervisorError(f"the dead hand is gone: {error.strerror}") from error
        await self._hear(b"G", _ANSWER_PATIENCE)

    async def dismiss(self) -> None:
        """All is over, the guest runs or is gone: it ends and gives up the lock."""
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
        self._end.close()

    async def _hear(self, wanted: bytes, patience: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience):
                heard = await loop.sock_recv(self._end, 1)
        except TimeoutError as error:
            raise HypervisorError("the dead hand does not answer") from error
        except OSError as error:
            raise HypervisorError(f"the dead hand is gone: {error.strerror}") from error
        if heard != wanted:
            raise HypervisorError("the dead hand is gone", remedy="its last words are in the log")

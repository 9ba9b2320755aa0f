"""Takes the streams that arrive over ssh: memory for xl's receiver, disks for their files.

Each is brought by a process that sshd has started (``join.py``): it connects to a socket that only
root can reach, says what it brings, and gives its standard input and output along.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

from entourage.errors import EntourageError, HypervisorError, Refused, plain_words
from entourage.hypervisors.xen.copying import receive
from entourage.hypervisors.xen.intake import Intake, Look

_LONGEST = 256
_SAYS_WITHIN = 10.0  # seconds, for one that has connected to say what it brings


class Arrivals:
    """The streams of one migration.

    Args:
        path: Of the socket.
        intake: Takes the memory.
        disks: Paths of disks that may be written, by id.
        look: Sees what the memory's domain is to be made of, before anything is.
    """

    def __init__(self, path: Path, intake: Intake, disks: Mapping[str, str], look: Look) -> None:
        self.path = path
        self.intake = intake
        self._disks = disks
        self._look = look
        self._taking: asyncio.Task[None] | None = None
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._brought: list[socket.socket] = []
        self._broken: asyncio.Future[HypervisorError] | None = None

    async def listen(self) -> None:
        """Take what comes from now on."""
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._listening.bind(str(self.path))
        self._listening.listen()
        self._broken = asyncio.get_running_loop().create_future()
        self._accepting = asyncio.create_task(self._accept(self._listening))

    async def broken(self) -> HypervisorError:
        """Returns, with the error, when a stream cannot be taken; never before."""
        if self._broken is None:
            return await asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._broken)

    async def close(self) -> None:
        """Let go of everything: the processes that sshd has started end with this."""
        self.intake.cut()
        ours = [task for task in (self._accepting, self._taking) if task is not None]
        for task in ours:
            task.cancel()
        await asyncio.gather(*ours, return_exceptions=True)
        self._accepting = self._taking = None
        for each in (self._listening, *self._brought):
            if each is not None:
                each.close()
        self._listening = None
        self._brought.clear()
        self.path.unlink(missing_ok=True)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            brought, _ = await loop.sock_accept(listening)
            brought.settimeout(_SAYS_WITHIN)
            self._brought.append(brought)
            try:
                # One short message, which was sent right after it connected.
                said, ends, _, _ = await asyncio.to_thread(socket.recv_fds, brought, _LONGEST, 2)
                await self._take(said.decode(errors="replace").strip(), ends)
            except (EntourageError, OSError) as error:
                self._fail(_as_failure(error))

    async def _take(self, what: str, ends: list[int]) -> None:
        if len(ends) != 2:  # noqa: PLR2004 - input and output
            _close(ends)
            raise HypervisorError(f"{what!r} was not given along")
        incoming, outgoing = ends
        kind, _, name = what.partition(" ")
        if kind == "memory":
            os.close(outgoing)
            taking = asyncio.create_task(self._take_memory(incoming))
            self._taking = self._taking or taking
        elif kind == "disk" and name in self._disks:
            loop = asyncio.get_running_loop()

            def write() -> None:
                try:
                    receive(self._disks[name], incoming, outgoing)
                except (HypervisorError, OSError) as error:
                    said = HypervisorError(
                        f"it cannot be written: {plain_words(error)}", device=f"block/{name}"
                    )
                    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                        loop.call_soon_threadsafe(self._fail, said)
                finally:
                    os.close(incoming)
                    os.close(outgoing)

            threading.Thread(target=write, daemon=True).start()
        else:
            _close(ends)
            raise HypervisorError(f"{what!r} is nothing that belongs here")

    async def _take_memory(self, incoming: int) -> None:
        try:
            await self.intake.start(incoming, self._look)
        except (EntourageError, OSError) as error:
            self._fail(_as_failure(error))

    def _fail(self, error: HypervisorError) -> None:
        if self._broken is not None and not self._broken.done():
            self._broken.set_result(error)


def _as_failure(error: EntourageError | OSError) -> HypervisorError:
    if isinstance(error, Refused) and error.refusals:
        first = error.refusals[0]
        return HypervisorError(first.reason, device=first.device, remedy=first.remedy)
    remedy = error.remedy if isinstance(error, EntourageError) else ""
    message = error.message if isinstance(error, EntourageError) else plain_words(error)
    return HypervisorError(f"a stream cannot be taken: {message}", remedy=remedy)


def _close(ends: list[int]) -> None:
    for each in ends:
        os.close(each)

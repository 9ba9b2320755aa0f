"""Takes the streams that arrive over ssh: memory for xl's receiver, disks for their files.

One that was saved comes over a socket of this host (``take``). Each other is brought by a process
that sshd has started (``join.py``): it connects to a socket that only root can reach, says what it
brings, and gives its standard input and output along. Whoever has a key for the agent can have one
started: so nothing is done for a stream, or said of it, before it has begun with the secret that
the source was told.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

from entourage.errors import EntourageError, HypervisorError, Refused, plain_words, what_to_do
from entourage.hypervisors.xen.copying import receive
from entourage.hypervisors.xen.intake import Intake, Look
from entourage.hypervisors.xen.join import REFUSED

_LONGEST = 256
_SAYS_WITHIN = 10.0  # seconds, for one that has connected to say what it brings, and the secret


class Arrivals:
    """The streams of one migration.

    Args:
        path: Of the socket.
        secret: What each stream begins with.
        intake: Takes the memory.
        disks: Paths of disks that may be written, by id.
        look: Sees what the memory's domain is to be made of, before anything is.
    """

    def __init__(
        self, path: Path, secret: bytes, intake: Intake, disks: Mapping[str, str], look: Look
    ) -> None:
        self.path = path
        self._secret = secret
        self.intake = intake
        self._disks = disks
        self._look = look
        self._taking: asyncio.Task[None] | None = None
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._hearing: set[asyncio.Task[None]] = set()
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

    def take(self, server: socket.socket) -> None:
        """Take memory of a save, which another process of this host brings.

        Args:
            server: It connects here; closed then.
        """

        async def accept() -> None:
            try:
                with server:
                    connection, _ = await asyncio.get_running_loop().sock_accept(server)
                await self.intake.start(connection.detach(), self._look)
            except (EntourageError, OSError) as error:
                self._fail(_as_failure(error))

        self._taking = asyncio.create_task(accept())

    async def broken(self) -> HypervisorError:
        """Returns, with the error, when a stream cannot be taken; never before."""
        if self._broken is None:
            return await asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._broken)

    async def close(self) -> None:
        """Let go of everything: the processes that sshd has started end with this."""
        self.intake.cut()
        ours = [task for task in (self._accepting, self._taking) if task is not None]
        ours += self._hearing
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
            brought.setblocking(False)  # noqa: FBT003 - the standard library's signature
            self._brought.append(brought)
            hearing = asyncio.create_task(self._hear(brought))
            self._hearing.add(hearing)
            hearing.add_done_callback(self._hearing.discard)

    async def _hear(self, brought: socket.socket) -> None:
        """Take a stream that has the secret; any other is only told that it is not taken."""
        ends: list[int] = []
        try:
            async with asyncio.timeout(_SAYS_WITHIN):
                await _readable(brought.fileno())
                # One short message, which was sent at once.
                said, ends, _, _ = socket.recv_fds(brought, _LONGEST, 2)
                known = len(ends) == 2 and await self._is_known(ends[0])  # noqa: PLR2004 - both
        except (OSError, TimeoutError):
            known, said = False, b""
        except asyncio.CancelledError:
            _close(ends)
            raise
        if not known:
            _close(ends)
            self._brought.remove(brought)
            with contextlib.suppress(OSError):
                brought.send(REFUSED)
            brought.close()
            return
        try:
            self._take(said.decode(errors="replace").strip(), ends)
        except (EntourageError, OSError) as error:
            self._fail(_as_failure(error))

    async def _is_known(self, incoming: int) -> bool:
        got = b""
        while len(got) < len(self._secret):
            await _readable(incoming)
            data = os.read(incoming, len(self._secret) - len(got))
            if not data:
                return False
            got += data
        return hmac.compare_digest(got, self._secret)

    def _take(self, what: str, ends: list[int]) -> None:
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
                    ours = isinstance(error, HypervisorError)
                    why = error.message if ours else plain_words(error)
                    said = HypervisorError(
                        f"it cannot be written: {why}",
                        device=f"block/{name}",
                        remedy=error.remedy if ours else what_to_do(error),
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
    ours = isinstance(error, EntourageError)
    message = error.message if ours else plain_words(error)
    remedy = error.remedy if ours else what_to_do(error)
    return HypervisorError(f"a stream cannot be taken: {message}", remedy=remedy)


async def _readable(descriptor: int) -> None:
    """Wait until something can be read of it, or its end."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def _close(ends: list[int]) -> None:
    for each in ends:
        os.close(each)

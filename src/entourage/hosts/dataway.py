"""Proof that data can go from one host to another: asked at TEST, by ports that it will take.

The target listens as it will later, at its first free ports of the range. The source connects and
says its token; the target answers with what only who has heard of the token can say.
Both send more than fits into a packet: a way that takes small packets only, as one with a wrong MTU
does, is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import hmac
import os
import socket
from collections.abc import Sequence

from entourage.errors import EntourageError, HypervisorError
from entourage.hosts.tcp import bindable, bracketed, listening_in_range

TOKEN = 32
"""Bytes of the token."""
_PADDING = bytes(32 << 10)
_WITHIN = 3.0  # seconds for one exchange: the kernel asks twice in that time
_ANSWERED_WITHIN = 2 * _WITHIN  # on the target: the source gives up first, and says why
_KEPT = 30.0  # seconds that the target waits for the source
_MOST = 16  # connections at once, of whoever has found the port


def answer_to(token: bytes) -> bytes:
    """What the target says to who has said the token; as long as it."""
    return hmac.digest(token, b"the target of the migration", hashlib.sha256)


class Awaited:
    """Sockets of the target that wait for the source's proof.

    Args:
        sockets: They listen; closed with this.
        token: What the source will say.
    """

    def __init__(self, sockets: Sequence[socket.socket], token: bytes) -> None:
        self._token = token
        self.ports: tuple[int, ...] = tuple(one.getsockname()[1] for one in sockets)
        self._sockets = sockets
        self._places = asyncio.Semaphore(_MOST)
        self._servers: list[asyncio.Server] = []
        self._answering: set[asyncio.Task[None]] = set()
        self._end: asyncio.TimerHandle | None = None

    @classmethod
    async def open(
        cls, address: str, ports: tuple[int, int], connections: int, token: bytes
    ) -> Awaited:
        """Listen as memory and disks will be listened for.

        Args:
            address: This host's, as the source will use it.
            ports: The first and the last of the range.
            connections: How many ports are needed.
            token: What the source will say there.

        Raises:
            HypervisorError: Nothing can listen there, or too few ports are free.
        """
        host = await bindable(address)
        with contextlib.ExitStack() as held:
            sockets = [
                held.enter_context(listening_in_range(host, ports)) for _ in range(connections)
            ]
            awaited = cls(sockets, token)
            for one in sockets:
                server = await asyncio.start_server(awaited._took, sock=one)
                held.callback(server.close)
                awaited._servers.append(server)
            held.pop_all()
        awaited._end = asyncio.get_running_loop().call_later(_KEPT, awaited._listen_no_more)
        return awaited

    async def close(self) -> None:
        """Listen no longer: the ports are free when this returns."""
        if self._end is not None:
            self._end.cancel()
        self._listen_no_more()
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    def _listen_no_more(self) -> None:
        for server in self._servers:
            server.close()
        for one in self._sockets:
            one.close()

    def _took(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._answer(reader, writer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer who knows the token; hang up on anybody else."""
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(_ANSWERED_WITHIN), self._places:
                    said = await reader.readexactly(TOKEN)
                    if not hmac.compare_digest(said, self._token):
                        return
                    await reader.readexactly(len(_PADDING))
                    writer.write(answer_to(self._token) + _PADDING)
                    await writer.drain()
                    await reader.read()  # until the source has all of it, and hangs up
        finally:
            writer.transport.abort()


async def prove(address: str, port: int, token: bytes) -> None:
    """Exchange the token with the target by a port of its, and more than fits into a packet.

    Args:
        address: The target's, numeric.
        port: What the target said that it listens at.
        token: What it waits for; of this host's making, so that no target chooses what is sent.

    Raises:
        HypervisorError: There is no way, or one that does not carry data; its message says which.
    """
    where = f"{bracketed(address)}:{port}"
    try:
        async with asyncio.timeout(_WITHIN):
            reader, writer = await asyncio.open_connection(address, port)
    except TimeoutError as error:
        raise HypervisorError(
            f"no connection to {where}: no answer within {_WITHIN:g} s"
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO).lower()
        raise HypervisorError(f"no connection to {where}: {reason}") from error
    try:
        async with asyncio.timeout(_WITHIN):
            writer.write(token + _PADDING)
            await writer.drain()
            if await reader.readexactly(TOKEN) != answer_to(token):
                raise HypervisorError(f"somebody else than the target answers at {where}")
            await reader.readexactly(len(_PADDING))
    except TimeoutError as error:
        raise HypervisorError(
            f"{where} takes connections, and what is sent does not arrive within {_WITHIN:g} s:"
            " is the MTU right all the way?"
        ) from error
    except (OSError, asyncio.IncompleteReadError) as error:
        raise HypervisorError(f"what answers at {where} hung up: it is not the target") from error
    finally:
        writer.transport.abort()


async def prove_all(address: str, ports: Sequence[int], token: bytes) -> EntourageError | None:
    """Prove the way to each port at once; the first problem, None where all are open."""
    done = await asyncio.gather(
        *(prove(address, port, token) for port in ports), return_exceptions=True
    )
    for problem in done:
        if isinstance(problem, EntourageError):
            return problem
        if problem is not None:
            raise problem
    return None

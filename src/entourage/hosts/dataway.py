"""Proof that data can go from one host to another: asked at TEST, by the very ports that it takes.

The target listens as it will later, at its first free ports of the range. The source connects, says
the token that it was given, and both send more than fits into a packet: a way that takes small
packets only, as one with a wrong MTU does, is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import socket
from collections.abc import Sequence

from entourage.errors import EntourageError, HypervisorError, plain_words
from entourage.hosts.tcp import bindable, bracketed, listening_in_range

TOKEN = 32
"""Bytes of the token."""
_PADDING = bytes(32 << 10)
_WITHIN = 3.0  # seconds for one exchange: the kernel asks twice in that time
_KEPT = 30.0  # seconds that the target waits for the source
_MOST = 16  # connections at once, of whoever has found the port


class Awaited:
    """Sockets of the target that wait for the source's proof.

    Args:
        sockets: They listen.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self.token = secrets.token_bytes(TOKEN)
        self.ports: tuple[int, ...] = tuple(one.getsockname()[1] for one in sockets)
        self._sockets = sockets
        self._places = asyncio.Semaphore(_MOST)
        self._serving = asyncio.create_task(self._serve())

    @classmethod
    async def open(cls, address: str, ports: tuple[int, int], connections: int) -> Awaited:
        """Listen as memory and disks will be listened for.

        Args:
            address: This host's, as the source will use it.
            ports: The first and the last of the range.
            connections: How many ports are needed.

        Raises:
            HypervisorError: Nothing can listen there, or too few ports are free.
        """
        host = await bindable(address)
        with contextlib.ExitStack() as held:
            sockets = [
                held.enter_context(listening_in_range(host, ports)) for _ in range(connections)
            ]
            held.pop_all()
        return cls(sockets)

    async def close(self) -> None:
        """Listen no longer: the ports are free when this returns."""
        self._serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._serving

    async def _serve(self) -> None:
        async with contextlib.AsyncExitStack() as held:
            for one in self._sockets:
                held.enter_context(one)
            for one in self._sockets:
                server = await asyncio.start_server(self._answer, sock=one)
                held.callback(server.close)
            await asyncio.sleep(_KEPT)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer who knows the token; hang up on anybody else."""
        with (
            contextlib.closing(writer),
            contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError),
        ):
            async with asyncio.timeout(_WITHIN), self._places:
                said = await reader.readexactly(TOKEN)
                if hmac.compare_digest(said, self.token):
                    await reader.readexactly(len(_PADDING))
                    writer.write(said + _PADDING)
                    await writer.drain()


async def prove(address: str, port: int, token: bytes) -> None:
    """Exchange the token with the target by a port of its, and more than fits into a packet.

    Args:
        address: The target's, numeric.
        port: What the target said that it listens at.
        token: What it said it waits for.

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
        raise HypervisorError(f"no connection to {where}: {plain_words(error)}") from error
    try:
        async with asyncio.timeout(_WITHIN):
            writer.write(token + _PADDING)
            await writer.drain()
            if await reader.readexactly(TOKEN) != token:
                raise HypervisorError(f"somebody else than the target answers at {where}")
            await reader.readexactly(len(_PADDING))
    except TimeoutError as error:
        raise HypervisorError(
            f"{where} takes connections, and what is sent does not arrive within {_WITHIN:g} s:"
            " is the MTU right all the way?"
        ) from error
    except (OSError, asyncio.IncompleteReadError) as error:
        reason = plain_words(error) if isinstance(error, OSError) else "it hung up"
        raise HypervisorError(f"what answers at {where} is not the target: {reason}") from error
    finally:
        writer.close()


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

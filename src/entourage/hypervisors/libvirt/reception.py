"""Memory that libvirt has sent into a save is taken by libvirt again, as if its domain moved here.

The target's phases of a migration, of which a save is the source: Prepare, with what Begin said as
it was saved, memory by a stream of libvirt's, and Finish, which leaves the guest paused. libvirtd
reads the stream from its own connection and gives it to QEMU by a pipe: no socket has to be where
QEMU's user gets to, and none that others could send to. What takes memory for such a stream is a
call of libvirt's library, which is given the address at which the kernel has put it.

Once Finish has been, there is what a restore of libvirt's own file leaves: a domain that stands
still, with memory and devices, until it is resumed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import re
import socket
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from entourage.errors import HypervisorError
from entourage.hosts.flow import Flow
from entourage.hosts.threads import in_thread
from entourage.hypervisors.libvirt.capi import Phases
from entourage.hypervisors.libvirt.connection import (
    Connection,
    LostError,
    RefusedError,
    bindings,
    call,
    phases,
)
from entourage.hypervisors.libvirt.constants import Flag, Parameter
from entourage.hypervisors.libvirt.plan import LibvirtPlan

_HOST = re.compile(rb"<hostuuid>[^<>]*</hostuuid>")
_AT_ONCE = 256 << 10  # bytes; libvirt's messages have no more in them
_FLAGS = Flag.LIVE | Flag.UNSAFE | Flag.PAUSED | Flag.TUNNELLED


class Reception:
    """One restore of such memory.

    Args:
        uri: Of this host's libvirtd.
        name: The domain's.
        plan: What is kept of it, adapted to this host.
        arrived: Waits until QEMU says that it has memory; raises HypervisorError where it fails.
        server: Where memory is sent to; not the caller's any more.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        plan: LibvirtPlan,
        arrived: Callable[[], Awaitable[None]],
        server: socket.socket,
    ) -> None:
        self._uri = uri
        self._name = name
        self._plan = plan
        self._arrived = arrived
        self._server = server
        self._connection: Connection | None = None
        self._flow: Flow | None = None
        self._preparing: asyncio.Future[None] | None = None
        self._finished = False

    async def take(self) -> None:
        """Have libvirt build the machine, and take memory; its guest stands still at the end.

        Raises:
            HypervisorError: libvirt or QEMU cannot take it.
            OSError: It did not come whole.
        """
        # Its own: as long as QEMU takes nothing, nothing else goes by a connection with a stream.
        self._connection = connection = await Connection.open(self._uri)
        stream: Any = connection.raw.newStream(0)
        library = await in_thread(phases)
        parameters = {Parameter.DEST_XML: str(self._plan.parameters[Parameter.DEST_XML])}
        self._preparing = call(
            library.prepare_tunnel,
            connection.raw, stream, parameters, elsewhere(self._plan.cookie), _FLAGS,
        )  # fmt: skip
        await _to_its_end(self._preparing)
        with self._server as server:
            path = Path(server.getsockname())
            came, _ = await asyncio.get_running_loop().sock_accept(server)
        await in_thread(path.unlink, missing_ok=True)
        self._flow = Flow(came, lambda source, moved: _pass_on(source, library, stream, moved))
        await self._flow.finished()
        await self._arrived()
        await _to_its_end(
            call(library.finish, connection.raw, self._named, b"", _FLAGS, cancelled=False)
        )
        self._finished = True
        await connection.close()

    @property
    def _named(self) -> dict[str, str | int | list[str]]:
        return {Parameter.DEST_NAME: self._name}

    async def end(self) -> None:
        """End it wherever it is; what Finish has left is its caller's to end."""
        self._server.close()
        preparing = self._preparing
        if preparing is not None:  # who was cancelled twice has not waited for it
            await asyncio.wait({preparing})
        if preparing is not None and not preparing.exception() and not self._finished:
            # By another connection: this one may be full of what QEMU does not take.
            with contextlib.suppress(LostError, RefusedError):
                other = await Connection.open(self._uri)
                try:
                    await _to_its_end(
                        call(
                            (await in_thread(phases)).finish,
                            other.raw, self._named, b"", _FLAGS, cancelled=True,
                        )
                    )  # fmt: skip
                finally:
                    await other.close()
        if self._flow is not None:
            await self._flow.end()
        if self._connection is not None and not self._finished:
            await self._connection.close()


async def _to_its_end(calling: asyncio.Future[Any]) -> None:
    """Wait for a call, also where this is cancelled: libvirt goes on with it."""
    try:
        await asyncio.shield(calling)
    except asyncio.CancelledError:
        await asyncio.wait({calling})
        raise


def _pass_on(
    source: socket.socket, library: Phases, stream: Any, moved: Callable[[int], None]
) -> None:
    """Send all that comes; in a thread of its own. No object of Python's is made of it."""
    with mmap.mmap(-1, _AT_ONCE) as memory:
        first = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(first)
        try:
            while count := source.recv_into(memory):
                done = 0
                while done < count:
                    sent = library.send(stream, address + done, count - done)
                    done += sent
                    moved(sent)
            stream.finish()
        except bindings().libvirtError as error:
            raise OSError(f"libvirt does not take it: {error}") from error
        finally:
            del first  # or the memory could not be given back


def elsewhere(cookie: bytes) -> bytes:
    """The same cookie as if it came from another host: libvirt takes none of its own host's.

    It goes by the host's UUID alone; whether the domain is there already, it looks as well.

    Raises:
        HypervisorError: It is none of libvirt's.
    """
    other = f"<hostuuid>{uuid.uuid4()}</hostuuid>".encode()
    changed, many = _HOST.subn(other, cookie)
    if many != 1:
        raise HypervisorError("what is kept in the save is no cookie of libvirt's")
    return changed

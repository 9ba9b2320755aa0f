"""The private bus of one domain: its QEMU is the only client, and this process the only helper.

QEMU's ``dbus-vmstate`` object connects here, and calls ``Save`` once its guest has stopped on the
source, and ``Load`` on the target before its guest may run. ``dbus-daemon`` has no part in it.

Only the user whom QEMU runs as, and root, may connect. All of libvirt's QEMUs are one user's, as a
rule: what keeps one of them off another's bus is AppArmor or SELinux, where they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import socket
import struct
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

from entourage.attend import wire
from entourage.errors import EntourageError, plain_words
from entourage.hosts.local import listening_here
from entourage.hypervisors.attended.switchover import ID

_INTERFACE: Final = "org.qemu.VMState1"
_OBJECT: Final = "/org/qemu/VMState1"
_BUS: Final = "org.freedesktop.DBus"
_BUS_OBJECT: Final = "/org/freedesktop/DBus"
_HELPER, _CLIENT = ":1.0", ":1.1"
_RUNS_ALREADY: Final = (2).to_bytes(4, "little")
_FAILED: Final = "org.freedesktop.DBus.Error.Failed"
_UNKNOWN: Final = "org.freedesktop.DBus.Error.UnknownMethod"
_NO_NAME: Final = "org.freedesktop.DBus.Error.NameHasNoOwner"
_LINE: Final = 1024  # bytes, of the authentication
_LINES: Final = 16
_MOST_CLIENTS: Final = 4
_MAY_WAIT: Final = frozenset({"ListQueuedOwners", "Save", "Load"})
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: process, user, group
_log = logging.getLogger(__name__)


class Helper(Protocol):
    """Whoever takes a domain's state out of its QEMU, and puts it in."""

    async def check_expected(self) -> None:
        """QEMU wants to know who has state: it writes, or has read, a stream.

        Raises:
            EntourageError: Not one that we know of, as where the domain is being saved into a file.
                QEMU then gives up, on the source before it has written anything of it. A Save that
                is refused leads to no more than a target which fails to load.
        """
        ...

    async def save(self) -> bytes:
        """The guest has stopped: what is to stand in QEMU's stream.

        Raises:
            EntourageError: The migration is refused; QEMU's target then fails to load.
        """
        ...

    async def load(self, state: bytes) -> None:
        """What stood there arrived; returns once the guest may run.

        Raises:
            EntourageError: It may not.
        """
        ...

    def connected(self) -> None:
        """A QEMU is on the bus."""
        ...

    def gone(self) -> None:
        """The last one went away, or its object was removed."""
        ...


class Bus:
    """The bus of one domain.

    Args:
        path: Of its socket.
        helper: Who is called.
        owner: The user whom QEMU runs as, by number: no other but root may connect.
    """

    def __init__(self, path: Path, helper: Helper, owner: int) -> None:
        self._path = path
        self._helper = helper
        self._owner = owner
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._connections: list[int] = []  # the descriptors of those that are on the bus

    @property
    def connection(self) -> int:
        """The descriptor of the connection of who came last of those on the bus; -1: nobody is."""
        return self._connections[-1] if self._connections else -1

    async def open(self) -> None:
        """Listen; what an earlier process has left at the socket's path is replaced.

        Raises:
            HypervisorError: It cannot be made.
        """
        if self._server is not None:
            return
        listening = listening_here(self._path, self._owner)
        self._server = await asyncio.start_unix_server(self._on_client, sock=listening)

    async def close(self) -> None:
        """Close it, and let go of who is on it: a call that waits then fails in QEMU."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in self._clients:
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients)
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        user = _user_of(writer.get_extra_info("socket"))
        if len(self._clients) >= _MOST_CLIENTS or user not in {0, self._owner}:
            _log.warning("%s: user %d, or one client more, was let go", self._path, user)
            writer.close()
            return
        on_bus = functools.partial(self._on_bus, writer.get_extra_info("socket").fileno())
        conversation = converse(self._helper, reader, writer, on_bus)
        task = asyncio.get_running_loop().create_task(conversation)
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    @contextlib.contextmanager
    def _on_bus(self, connection: int) -> Generator[None]:
        """A client is on the bus: a second one that leaves is not the end of the first."""
        self._connections.append(connection)
        self._helper.connected()
        try:
            yield
        finally:
            self._connections.remove(connection)
            if not self._connections:
                self._helper.gone()


def _user_of(connection: socket.socket) -> int:
    """The user at the other end of a unix socket, as the kernel has it."""
    length = _CREDENTIALS.size
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, length)
    return int(_CREDENTIALS.unpack(peer)[1])


async def converse(
    helper: Helper,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    on_bus: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    *,
    resumed: bool = False,
) -> None:
    """Serve one client until it goes away, or says what no QEMU says.

    Args:
        helper: Who is called.
        reader: What the client says.
        writer: What it is told; closed at the end.
        on_bus: Entered for as long as it is on the bus.
        resumed: It is on the bus already: an earlier process has let it in.
    """
    try:
        if not resumed:
            await _authenticate(reader, writer)
        with on_bus():
            await _Conversation(helper, reader, writer).run()
    except (OSError, wire.WireError, asyncio.IncompleteReadError):
        pass  # it went away, or is no QEMU
    finally:
        writer.close()


async def _authenticate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let in whoever could open the socket: its owner and mode are the check."""
    if await reader.readexactly(1) != b"\0":
        raise wire.WireError("no client of D-Bus")
    for _ in range(_LINES):
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError as error:
            raise wire.WireError("no client of D-Bus") from error
        if len(line) > _LINE:
            raise wire.WireError("no client of D-Bus")
        match line.split():
            case [b"AUTH", b"EXTERNAL", _] | [b"DATA", *_]:
                writer.write(f"OK {secrets.token_hex(16)}\r\n".encode())
            case [b"AUTH", b"EXTERNAL"]:
                writer.write(b"DATA\r\n")
            case [b"AUTH", *_]:
                writer.write(b"REJECTED EXTERNAL\r\n")
            case [b"BEGIN"]:
                return
            case _:
                writer.write(b"ERROR\r\n")
    raise wire.WireError("no client of D-Bus")


class _Conversation:
    """What one QEMU says; calls of its own run one after the other, as it makes them."""

    def __init__(
        self, helper: Helper, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._helper = helper
        self._reader = reader
        self._writer = writer
        self._serial = 0
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Answer until it goes away."""
        try:
            while True:
                fixed = await self._reader.readexactly(wire.FIXED)
                rest = await self._reader.readexactly(wire.length_of(fixed))
                message = wire.parse(fixed + rest)
                if message.kind != wire.CALL:
                    continue
                if self._calls:
                    raise wire.WireError("a call before the last one was answered")
                if message.member in _MAY_WAIT:  # meanwhile it is seen to go away
                    task = asyncio.create_task(self._answer_meanwhile(message))
                    self._calls.add(task)
                    task.add_done_callback(self._calls.discard)
                else:
                    await self._answer(message)
        finally:
            for task in self._calls:
                task.cancel()

    async def _answer_meanwhile(self, call: wire.Message) -> None:
        """As ``_answer``; one whose words cannot be read is let go, so that its call fails."""
        try:
            await self._answer(call)
        except (wire.WireError, OSError) as error:
            _log.warning("a call of %s is not understood: %s", call.member, plain_words(error))
            self._writer.close()

    async def _answer(self, call: wire.Message) -> None:
        self._serial += 1
        try:
            signature, body = await self._do(call)
            said = wire.reply(call, self._serial, signature, body)
        except EntourageError as error:
            said = wire.fault(call, self._serial, _FAILED, str(error))
        except KeyError:
            said = wire.fault(call, self._serial, _NO_NAME, "nobody has that name")
        except NotImplementedError:
            said = wire.fault(call, self._serial, _UNKNOWN, f"no {call.member} here")
        if not call.flags & wire.NO_REPLY:
            self._writer.write(said)
            await self._writer.drain()

    async def _do(self, call: wire.Message) -> tuple[str, bytes]:
        match call.interface, call.member:
            case ("org.freedesktop.DBus", "Hello"):
                return "s", wire.text(_CLIENT)
            case ("org.freedesktop.DBus", "AddMatch" | "RemoveMatch"):
                return "", b""
            case ("org.freedesktop.DBus", "ListQueuedOwners"):
                _owner(call.text())
                await self._helper.check_expected()
                return "as", wire.texts([_HELPER])
            case ("org.freedesktop.DBus", "GetNameOwner"):
                return "s", wire.text(_owner(call.text()))
            case ("org.freedesktop.DBus", "StartServiceByName"):
                _owner(call.text())
                return "u", _RUNS_ALREADY
            case ("org.freedesktop.DBus.Properties", "GetAll") if call.path == _BUS_OBJECT:
                return "a{sv}", wire.properties({})
            case ("org.freedesktop.DBus.Properties", "GetAll") if call.path == _OBJECT:
                return "a{sv}", wire.properties({"Id": ID})
            case ("org.qemu.VMState1", "Save") if call.path == _OBJECT:
                return "ay", wire.blob(await self._helper.save())
            case ("org.qemu.VMState1", "Load") if call.path == _OBJECT:
                await self._helper.load(call.data())
                return "", b""
            case _:
                raise NotImplementedError


def _owner(name: str) -> str:
    """Whose a name is; raises KeyError where it is nobody's."""
    return {_BUS: _BUS, _HELPER: _HELPER, _INTERFACE: _HELPER}[name]

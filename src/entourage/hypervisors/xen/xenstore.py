"""A small client of xenstored: reads, and watches that are events and no polling.

The protocol is ``xen/include/public/io/xs_wire.h``: a header of four 32-bit numbers (kind, request,
transaction, length), and the payload. Nothing is ever written.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from pathlib import Path

from entourage.errors import HypervisorError, plain_words

_SOCKETS = ("/run/xenstored/socket", "/var/run/xenstored/socket")
_HEADER = struct.Struct("=IIII")
_DIRECTORY, _READ, _WATCH, _EVENT, _ERROR = 1, 2, 4, 15, 16
ASK_AGAIN = 2.0
"""Seconds after which is asked again what no event has told."""
RELEASED = "@releaseDomain"
"""Fires when any domain has been shut down, has suspended, or is gone."""


class XenStore:
    """A connection to xenstored. Use ``XenStore.open``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._number = 0
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._fired: dict[str, asyncio.Event] = {}
        self._serving = asyncio.create_task(self._serve())

    @classmethod
    async def open(cls) -> XenStore:
        """Connect.

        Raises:
            HypervisorError: xenstored does not run here.
        """
        for path in _SOCKETS:
            if Path(path).exists():  # noqa: ASYNC240 - /run
                try:
                    return cls(*await asyncio.open_unix_connection(path))
                except OSError as error:
                    raise HypervisorError(
                        f"xenstored cannot be reached: {path}: {plain_words(error)}",
                        remedy="see whether Xen's daemons run, and run it as root",
                    ) from error
        raise HypervisorError("xenstored does not run here", remedy="start Xen's daemons")

    async def close(self) -> None:
        """Let go of it; its watches end."""
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def read(self, path: str) -> str:
        """What is at a path; empty where there is nothing."""
        try:
            return (await self._ask(_READ, path)).decode(errors="replace")
        except KeyError:
            return ""

    async def directory(self, path: str) -> list[str]:
        """The names below a path; none where it is not there."""
        try:
            names = (await self._ask(_DIRECTORY, path)).decode(errors="replace")
        except KeyError:
            return []
        return [name for name in names.split("\0") if name]

    async def watch(self, path: str) -> asyncio.Event:
        """Watch a path: the event is set whenever something happens there, and once at first."""
        if path not in self._fired:
            self._fired[path] = asyncio.Event()
            await self._ask(_WATCH, path, path)
        return self._fired[path]

    async def domain_ids(self, uuid: str) -> list[int]:
        """The domains that have this UUID."""
        found: list[int] = []
        for name in await self.directory("/local/domain"):
            vm = await self.read(f"/local/domain/{name}/vm")
            if vm.rpartition("/")[2].lower().startswith(uuid.lower()):
                found.append(int(name))
        return found

    async def name(self, domid: int) -> str:
        """A domain's name; empty where there is no such domain."""
        return await self.read(f"/local/domain/{domid}/name")

    async def _ask(self, kind: int, *words: str) -> bytes:
        """Ask; KeyError where xenstored says no, HypervisorError where it is gone."""
        self._number += 1
        number = self._number
        payload = b"".join(word.encode() + b"\0" for word in words)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            if self._serving.done():
                raise HypervisorError("xenstored has gone away")
            self._writer.write(_HEADER.pack(kind, number, 0, len(payload)) + payload)
            return await answer
        finally:
            del self._answers[number]

    async def _serve(self) -> None:
        try:
            while True:
                kind, number, _, length = _HEADER.unpack(
                    await self._reader.readexactly(_HEADER.size)
                )
                payload = await self._reader.readexactly(length)
                if kind == _EVENT:
                    self._fired[payload.split(b"\0")[1].decode()].set()
                elif (answer := self._answers.get(number)) and not answer.done():
                    if kind == _ERROR:
                        answer.set_exception(KeyError(payload.decode(errors="replace")))
                    else:
                        answer.set_result(payload)
        except (OSError, asyncio.IncompleteReadError):
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(HypervisorError("xenstored has gone away"))
            for fired in self._fired.values():
                fired.set()

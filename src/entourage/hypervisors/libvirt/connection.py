"""Connections to libvirt: opened, asked in threads of their own, and what they say by themselves.

Every call of libvirt's blocks, for as long as it likes. So each is made in a thread of its own,
which nothing waits for when this process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import importlib
import importlib.util
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from entourage.errors import HypervisorError, HypervisorOff, UsageError
from entourage.hosts.threads import in_thread
from entourage.hypervisors.libvirt.capi import Phases
from entourage.hypervisors.libvirt.constants import NO_DOMAIN
from entourage.hypervisors.qmp_error import CommandError
from entourage.hypervisors.understood import understood

Result = TypeVar("Result")

_KEEPALIVE = (5, 3)
"""Seconds between two questions to libvirtd, and how many it may leave open."""
_TRY_AGAIN = 0.1


class LostError(HypervisorError):
    """There is no way to libvirtd (any more); what became of a call is not known."""


class OffError(LostError, HypervisorOff):
    """Nothing listens at libvirtd's socket, or there is none."""


class RefusedError(HypervisorError):
    """libvirt said no.

    Attributes:
        code: ``virErrorNumber``.
    """

    def __init__(self, message: str, code: int, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


def installed() -> bool:
    """Whether libvirt's Python module is."""
    return importlib.util.find_spec("libvirt") is not None


@functools.cache
def bindings() -> Any:
    """Libvirt's Python module, with its event loop running; raises UsageError without it."""
    try:
        libvirt: Any = importlib.import_module("libvirt")
    except ImportError as error:
        raise UsageError(
            f"libvirt's Python module cannot be used: {error}",
            remedy="install libvirt-python (pip install 'entourage[libvirt]', or python3-libvirt)",
        ) from error
    libvirt.registerErrorHandler(_say_nothing, None)  # or else it prints each error
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt-events", daemon=True).start()
    return libvirt


@functools.cache
def phases() -> Phases:
    """The phases of the libvirt that is loaded; raises UsageError where it cannot be driven."""
    libvirt = bindings()
    return Phases.open(libvirt.getVersion(), libvirt.libvirtError)


def _say_nothing(_context: Any, _error: Any) -> None:
    pass


def call(function: Callable[..., Result], *arguments: Any, **named: Any) -> asyncio.Future[Result]:
    """Make a call that blocks, in a thread of its own; it goes on where nobody waits for it.

    Errors of libvirt's come as LostError or RefusedError.
    """

    def made() -> Result:
        try:
            return function(*arguments, **named)
        except Exception as error:
            if (ours := told(error)) is error:
                raise
            raise ours from error

    return in_thread(made)


async def ask(function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    """Make a short call and wait for it, also where this is cancelled meanwhile."""
    future = call(function, *arguments, **named)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if not future.done():
            await asyncio.wait({future})
        raise


async def tell_qemu(raw: Any, command: str, **arguments: Any) -> Any:
    """Say something to a domain's QEMU that libvirt has no word for.

    libvirt notes in its log, and with the domain ("tainted"), that somebody has done so.

    Returns:
        What QEMU answers; None where it refuses.

    Raises:
        RefusedError: libvirt does not pass it on.
        HypervisorError: The answer is none that can be read.
    """
    answer = await _answer(raw, command, arguments)
    with understood(f"QEMU's answer to {command}"):
        return answer.get("return")


async def have_qemu(
    raw: Any, command: str, arguments: Mapping[str, Any], *, device: str = ""
) -> Any:
    """The same, of what QEMU must not refuse: it is told why where it does.

    Args:
        raw: ``libvirt.virDomain``.
        command: QEMU's name of it.
        arguments: What QEMU is given with it.
        device: The label of the device that an error is about.

    Raises:
        CommandError: QEMU refuses.
        LostError, RefusedError, HypervisorError: As of ``tell_qemu``.
    """
    answer = await _answer(raw, command, arguments)
    with understood(f"QEMU's answer to {command}"):
        error = answer.get("error")
        reason = str(error["desc"]) if error else ""
        returned = answer.get("return")
    if reason:
        raise CommandError(command, reason, device=device)
    return returned


async def _answer(raw: Any, command: str, arguments: Mapping[str, Any]) -> Any:
    qemu: Any = importlib.import_module("libvirt_qemu")
    text = json.dumps({"execute": command, "arguments": arguments})
    answer: str = await ask(qemu.qemuMonitorCommand, raw, text, 0)
    with understood(f"QEMU's answer to {command}"):
        return json.loads(answer)


# VIR_FROM_RPC: the client's half of a connection speaks. VIR_ERR_INVALID_CONN: it is closed.
_FROM_RPC, _INVALID_CONN = 7, 6
_SYSTEM_ERROR = 38  # VIR_ERR_SYSTEM_ERROR: with the system's number as int1
_NOBODY_LISTENS = frozenset({errno.ECONNREFUSED, errno.ENOENT})


def _errno_of(error: Exception) -> int:
    return int(getattr(error, "get_int1", int)() or 0)


def told(error: Exception) -> Exception:
    """An error of libvirt's as one of ours; any other as it is."""
    code = getattr(error, "get_error_code", None)
    if code is None:
        return error
    number: int = code() or 0
    domain: int = getattr(error, "get_error_domain")() or 0  # noqa: B009 - it has no type
    said = str(getattr(error, "get_error_message")() or error)  # noqa: B009
    message = " ".join(said.split())
    if (domain, number) == (_FROM_RPC, _SYSTEM_ERROR) and _errno_of(error) in _NOBODY_LISTENS:
        return OffError(f"libvirt: {message}", remedy="see whether libvirtd runs")
    if domain == _FROM_RPC or number == _INVALID_CONN:
        return LostError(f"libvirt: {message}", remedy="see whether libvirtd runs")
    return RefusedError(f"libvirt: {message}", number)


class Connection:
    """An open connection. Use ``Connection.open``.

    Attributes:
        raw: ``libvirt.virConnect``.
        uri: What it was opened with.
    """

    def __init__(self, raw: Any, uri: str) -> None:
        self.raw = raw
        self.uri = uri

    @classmethod
    async def open(cls, uri: str, *, read_only: bool = False) -> Connection:
        """Open one.

        Raises:
            UsageError: libvirt's Python module is missing.
            LostError, RefusedError: There is no way to that libvirtd.
        """
        libvirt = await in_thread(bindings)

        def connect() -> Any:
            raw = libvirt.openReadOnly(uri) if read_only else libvirt.open(uri)
            with contextlib.suppress(libvirt.libvirtError):  # not all drivers know of it
                raw.setKeepAlive(*_KEEPALIVE)
            return raw

        try:
            return cls(await asyncio.shield(call(connect)), uri)  # not waited for in vain
        except HypervisorError as error:
            error.remedy = f"see whether `virsh -c {uri} list` works here"
            raise

    @classmethod
    async def open_again(cls, uri: str, patience: float) -> Connection:
        """Open one as soon as libvirtd is back; raises LostError where it is not in time."""
        try:
            async with asyncio.timeout(patience):
                while True:
                    with contextlib.suppress(LostError, RefusedError):
                        return await cls.open(uri)
                    await asyncio.sleep(_TRY_AGAIN)
        except TimeoutError as error:
            raise LostError(
                f"libvirtd has not come back within {patience:g} s ({uri})",
                remedy="start it, then `entourage recover`",
            ) from error

    async def domain(self, uuid: str) -> Any:
        """The domain with that UUID; None where there is none."""
        return await self._found(self.raw.lookupByUUIDString, uuid)

    async def named(self, name: str) -> Any:
        """The domain of that name; None where there is none."""
        return await self._found(self.raw.lookupByName, name)

    async def _found(self, look: Callable[[str], Any], what: str) -> Any:
        try:
            return await ask(look, what)
        except RefusedError as error:
            if error.code == NO_DOMAIN:
                return None
            raise

    async def alive(self) -> bool:
        """Whether libvirtd is still at the other end."""
        try:
            return bool(await ask(self.raw.isAlive))
        except HypervisorError:
            return False

    async def close(self) -> None:
        """Close it; one that has died is closed already."""
        with contextlib.suppress(HypervisorError):
            await ask(self.raw.close)

"""The five phases of libvirt's managed migration, called in ``libvirt.so.0`` itself.

Begin, Prepare, Perform, Finish, Confirm are what ``virDomainMigrate3`` is made of. libvirtd's own
dispatcher calls the same five functions, so every release exports them; but they are no part of the
public API, and so ``Phases.open`` looks whether all of them are there. Memory that goes to a target
by a stream of libvirt's is sent here as well, from an address. Every call blocks, releases
the GIL, and leaves its error in its own thread. What a phase gives out as its cookie is the next
phase's, with its exact length.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from entourage.errors import UsageError
from entourage.hypervisors.libvirt.constants import UNSIGNED_LONG

Parameters: TypeAlias = Mapping[str, str | int | list[str]]

OLDEST = (6, 0, 0)
"""The first that has all parameters which are passed here."""
_PHASES = ("Begin", "Prepare", "PrepareTunnel", "Perform", "Finish", "Confirm")
_NAMES = (*(f"virDomainMigrate{name}3Params" for name in _PHASES), "virStreamSend")
_FIELD = 80
_INT, _ULLONG, _STRING = 1, 4, 7


class _Value(ctypes.Union):
    _fields_ = (
        ("i", ctypes.c_int),
        ("ul", ctypes.c_ulonglong),
        ("s", ctypes.c_char_p),
    )


class TypedParameter(ctypes.Structure):
    """``virTypedParameter``."""

    _fields_ = (
        ("field", ctypes.c_char * _FIELD),
        ("type", ctypes.c_int),
        ("value", _Value),
    )


def marshalled(parameters: Parameters) -> Any:
    """An array of ``virTypedParameter``; a list becomes several of one name.

    The texts live as long as the array does.
    """
    flat = list(_flat(parameters))
    array = (TypedParameter * len(flat))()
    for slot, (name, value) in zip(array, flat, strict=True):
        slot.field = name.encode()
        if isinstance(value, str):
            slot.type = _STRING
            slot.value.s = value.encode()
        elif name in UNSIGNED_LONG:
            slot.type = _ULLONG
            slot.value.ul = value
        else:
            slot.type = _INT
            slot.value.i = value
    return array


def _flat(parameters: Parameters) -> Iterator[tuple[str, str | int]]:
    for name, value in parameters.items():
        each: Sequence[str | int] = value if isinstance(value, list) else [value]
        for one in each:
            yield name, one


class Phases:
    """The phases. Use ``Phases.open``.

    A failure raises what ``error`` makes of the calling thread's last error.

    Args:
        library: ``libvirt.so.0``.
        error: Makes the exception, in the thread that failed: ``libvirt.libvirtError``.
    """

    def __init__(self, library: ctypes.CDLL, error: Any) -> None:
        self._library = library
        self._error = error
        self._libc = ctypes.CDLL(None)
        self._libc.free.argtypes = [ctypes.c_void_p]

    @classmethod
    def open(cls, version: int, error: Any) -> Phases:
        """Find them.

        Args:
            version: Of the library, as it says itself: 9000000 is 9.0.0.
            error: See the class.

        Raises:
            UsageError: This libvirt cannot be driven.
        """
        dotted = version // 1_000_000, version // 1000 % 1000, version % 1000
        said = ".".join(map(str, dotted))
        if dotted < OLDEST:
            raise UsageError(
                f"libvirt {said} is too old to be driven", remedy="6.0.0 or newer is needed"
            )
        library = ctypes.CDLL("libvirt.so.0")
        missing = [name for name in _NAMES if not hasattr(library, name)]
        if missing:
            raise UsageError(
                f"libvirt {said} does not let its phases be driven: it lacks {', '.join(missing)}",
                remedy="use `virsh migrate`, and report it",
            )
        return cls(library, error)

    def begin(self, domain: Any, parameters: Parameters, flags: int) -> tuple[str, bytes]:
        """Source: may it migrate? The domain's XML, and a cookie for Prepare."""
        cookie, length = ctypes.c_void_p(), ctypes.c_int()
        array = marshalled(parameters)
        function = self._library.virDomainMigrateBegin3Params
        function.restype = ctypes.c_void_p
        xml = function(
            _domain(domain), array, len(array),
            ctypes.byref(cookie), ctypes.byref(length), ctypes.c_uint(flags),
        )  # fmt: skip
        baked = self._cookie(cookie, length)
        if not xml:
            raise self._error("Begin failed")
        return self._text(xml), baked

    def prepare(
        self, connection: Any, parameters: Parameters, cookie: bytes, flags: int
    ) -> tuple[str, bytes]:
        """Target: start QEMU. Where it waits for memory, and a cookie for Perform."""
        out, length, uri = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_void_p()
        array = marshalled(parameters)
        status = self._library.virDomainMigratePrepare3Params(
            _connection(connection), array, len(array), cookie or None, len(cookie),
            ctypes.byref(out), ctypes.byref(length), ctypes.byref(uri), ctypes.c_uint(flags),
        )  # fmt: skip
        baked = self._cookie(out, length)
        where = self._text(uri.value) if uri.value else ""
        if status < 0:
            raise self._error("Prepare failed")
        return where, baked

    def prepare_tunnel(
        self, connection: Any, stream: Any, parameters: Parameters, cookie: bytes, flags: int
    ) -> None:
        """Target: start QEMU, which takes its memory from a stream of this connection's."""
        out, length = ctypes.c_void_p(), ctypes.c_int()
        array = marshalled(parameters)
        status = self._library.virDomainMigratePrepareTunnel3Params(
            _connection(connection), _pointer(stream, b"virStreamPtr"), array, len(array),
            cookie or None, len(cookie), ctypes.byref(out), ctypes.byref(length),
            ctypes.c_uint(flags),
        )  # fmt: skip
        self._cookie(out, length)
        if status < 0:
            raise self._error("Prepare failed")

    def send(self, stream: Any, address: int, count: int) -> int:
        """Put bytes into a stream from where they are in memory; how many of them it took.

        libvirt-python has a call for it as well, which takes them as an object of Python's only.
        """
        function = self._library.virStreamSend
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        sent: int = function(_pointer(stream, b"virStreamPtr"), address, count)
        if sent < 0:
            raise self._error("virStreamSend failed")
        return sent

    def perform(self, domain: Any, parameters: Parameters, cookie: bytes, flags: int) -> bytes:
        """Source: send disks and memory; returns when all is sent and taken. For Finish."""
        out, length = ctypes.c_void_p(), ctypes.c_int()
        array = marshalled(parameters)
        status = self._library.virDomainMigratePerform3Params(
            _domain(domain), None, array, len(array), cookie or None, len(cookie),
            ctypes.byref(out), ctypes.byref(length), ctypes.c_uint(flags),
        )  # fmt: skip
        baked = self._cookie(out, length)
        if status < 0:
            raise self._error("Perform failed")
        return baked

    def finish(
        self, connection: Any, parameters: Parameters, cookie: bytes, flags: int, *, cancelled: bool
    ) -> bytes:
        """Target: let the guest run, or, cancelled, end it. For Confirm.

        Raises what the last error is also where it was cancelled and went well; the error's code
        is ``VIR_ERR_MIGRATE_FINISH_OK`` then.
        """
        out, length = ctypes.c_void_p(), ctypes.c_int()
        array = marshalled(parameters)
        function = self._library.virDomainMigrateFinish3Params
        function.restype = ctypes.c_void_p
        domain = function(
            _connection(connection), array, len(array), cookie or None, len(cookie),
            ctypes.byref(out), ctypes.byref(length), ctypes.c_uint(flags), int(cancelled),
        )  # fmt: skip
        baked = self._cookie(out, length)
        if not domain:
            raise self._error("Finish failed")
        self._library.virDomainFree(ctypes.c_void_p(domain))
        return baked

    def confirm(
        self, domain: Any, parameters: Parameters, cookie: bytes, flags: int, *, cancelled: bool
    ) -> None:
        """Source: end the copy here, or, cancelled, let it run again."""
        array = marshalled(parameters)
        status = self._library.virDomainMigrateConfirm3Params(
            _domain(domain), array, len(array), cookie or None, len(cookie),
            ctypes.c_uint(flags), int(cancelled),
        )  # fmt: skip
        if status < 0:
            raise self._error("Confirm failed")

    def _text(self, address: int) -> str:
        """A text that libvirt has allocated."""
        try:
            return ctypes.string_at(address).decode()
        finally:
            self._libc.free(address)

    def _cookie(self, address: ctypes.c_void_p, length: ctypes.c_int) -> bytes:
        if not address.value:
            return b""
        try:
            return ctypes.string_at(address.value, length.value)
        finally:
            self._libc.free(address)


def _domain(domain: Any) -> ctypes.c_void_p:
    return _pointer(domain, b"virDomainPtr")


def _connection(connection: Any) -> ctypes.c_void_p:
    return _pointer(connection, b"virConnectPtr")


def _pointer(wrapper: Any, name: bytes) -> ctypes.c_void_p:
    """What one of libvirt-python's objects stands for."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype = ctypes.c_void_p
    get.argtypes = [ctypes.py_object, ctypes.c_char_p]
    return ctypes.c_void_p(get(wrapper._o, name))  # noqa: SLF001 - its own generated code has no other

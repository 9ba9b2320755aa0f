"""The D-Bus wire protocol, as far as QEMU's ``dbus-vmstate`` object speaks it.

https://dbus.freedesktop.org/doc/dbus-specification.html. Only calls whose first argument is a
string or a byte array are read, and only what QEMU reads is written. What a QEMU sends is not
trusted: its guest may have taken it over.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

MOST: Final = 2 << 20
"""Bytes of a message that is taken; QEMU's state of one helper is 1 MiB at most."""
FIXED: Final = 16
"""Bytes with which each message begins, and which tell its length."""
CALL: Final = 1
NO_REPLY: Final = 1
_RETURN, _ERROR = 2, 3
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _SENDER, _SIGNATURE = 1, 2, 3, 4, 5, 7, 8
_BUS_NAME = "org.freedesktop.DBus"


class WireError(ValueError):
    """What came is no D-Bus message, or one that is not taken."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message that arrived.

    Attributes:
        kind: ``CALL``, or something that is not answered.
        flags: ``NO_REPLY`` may be among them.
        serial: What its answer must name.
        path, interface, member: What is called.
        signature: Of the body.
        body: As it came.
        order: ``<`` or ``>``, as for ``struct``.
    """

    kind: int
    flags: int
    serial: int
    path: str
    interface: str
    member: str
    signature: str
    body: bytes
    order: str

    def text(self) -> str:
        """The first argument, a string.

        Raises:
            WireError: It is none.
        """
        if not self.signature.startswith("s"):
            raise WireError(f"{self.member} takes a string")
        return _Reader(self.body, self.order).text()

    def data(self) -> bytes:
        """The only argument, an array of bytes.

        Raises:
            WireError: It is none.
        """
        if self.signature != "ay":
            raise WireError(f"{self.member} takes an array of bytes")
        reader = _Reader(self.body, self.order)
        return reader.take(reader.number())


class _Reader:
    """Reads marshalled values one after the other; raises WireError where they end too early."""

    def __init__(self, data: bytes, order: str) -> None:
        self._data = data
        self._order = order
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self.at:
            raise WireError("a value is longer than its message")
        self.at += count
        return self._data[self.at - count : self.at]

    def align(self, boundary: int) -> None:
        self.take(-self.at % boundary)

    def number(self) -> int:
        self.align(4)
        return int(struct.unpack(f"{self._order}I", self.take(4))[0])

    def text(self) -> str:
        return self._decoded(self.number())

    def signature(self) -> str:
        return self._decoded(self.take(1)[0])

    def _decoded(self, length: int) -> str:
        text = self.take(length)
        self.take(1)
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise WireError("a string is not UTF-8") from error


def length_of(fixed: bytes) -> int:
    """How many bytes follow the first ``FIXED`` of a message.

    Raises:
        WireError: They begin no message, or one that is too long.
    """
    order = _order(fixed)
    body, _, fields = struct.unpack(f"{order}III", fixed[4:16])
    rest = fields + -fields % 8 + body
    if fixed[3] != 1 or rest > MOST:
        raise WireError("no message of D-Bus, or one that is too long")
    return int(rest)


def parse(data: bytes) -> Message:
    """The message in these bytes, which are all of it.

    Raises:
        WireError: They are none.
    """
    order = _order(data)
    body, serial, fields = struct.unpack(f"{order}III", data[4:16])
    reader = _Reader(data[: FIXED + fields], order)
    reader.at = FIXED
    found: dict[int, str] = {}
    while reader.at < FIXED + fields:
        reader.align(8)
        code = reader.take(1)[0]
        match reader.signature():
            case "s" | "o":
                found[code] = reader.text()
            case "g":
                found[code] = reader.signature()
            case "u":
                reader.number()
            case other:
                raise WireError(f"a header field of type {other!r}")
    return Message(
        kind=data[1],
        flags=data[2],
        serial=serial,
        path=found.get(_PATH, ""),
        interface=found.get(_INTERFACE, ""),
        member=found.get(_MEMBER, ""),
        signature=found.get(_SIGNATURE, ""),
        body=data[len(data) - body :],
        order=order,
    )


def _order(data: bytes) -> str:
    match data[:1]:
        case b"l":
            return "<"
        case b"B":
            return ">"
        case _:
            raise WireError("no message of D-Bus")


# What is answered


def text(value: str) -> bytes:
    """A string, as the first value of a body."""
    data = value.encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def texts(values: list[str]) -> bytes:
    """An array of strings, as the first value of a body."""
    array = b""
    for value in values:
        array += b"\0" * (-len(array) % 4) + text(value)
    return struct.pack("<I", len(array)) + array


def blob(data: bytes) -> bytes:
    """An array of bytes, as the first value of a body."""
    return struct.pack("<I", len(data)) + data


def properties(values: dict[str, str]) -> bytes:
    """``a{sv}`` with strings in it, as the first value of a body."""
    array = b""
    for name, value in values.items():
        array += b"\0" * (-(8 + len(array)) % 8) + text(name) + b"\x01s\0"
        array += b"\0" * (-(8 + len(array)) % 4) + text(value)
    return struct.pack("<I", len(array)) + b"\0" * 4 + array


def reply(to: Message, serial: int, signature: str = "", body: bytes = b"") -> bytes:
    """The answer to a call.

    Args:
        to: The call.
        serial: The answer's own.
        signature: Of the body; empty for none.
        body: Its values.
    """
    return _message(_RETURN, serial, to.serial, signature, body)


def fault(to: Message, serial: int, name: str, why: str) -> bytes:
    """The error that a call leads to; ``name`` is D-Bus's, with dots in it."""
    return _message(_ERROR, serial, to.serial, "s", text(why), name)


def _message(  # noqa: PLR0917 - its parts, in their order
    kind: int, serial: int, to: int, signature: str, body: bytes, error: str = ""
) -> bytes:
    parts = [(_REPLY_SERIAL, b"\x01u\0" + struct.pack("<I", to))]
    if error:
        parts.append((_ERROR_NAME, b"\x01s\0" + text(error)))
    parts.append((_SENDER, b"\x01s\0" + text(_BUS_NAME)))
    if signature:
        shown = signature.encode()
        parts.append((_SIGNATURE, b"\x01g\0" + bytes([len(shown)]) + shown + b"\0"))
    fields = b""
    for code, value in parts:
        fields += b"\0" * (-len(fields) % 8) + bytes([code]) + value
    head = struct.pack("<cBBBIII", b"l", kind, NO_REPLY, 1, len(body), serial, len(fields))
    return head + fields + b"\0" * (-len(fields) % 8) + body

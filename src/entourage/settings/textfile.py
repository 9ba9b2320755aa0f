"""Files that a user wrote: read with limits, and every fault in them told with its place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from entourage.errors import ConfigError, what_to_do

LARGEST = 1 << 20
"""Bytes: no settings and no domain are longer, and ``/dev/zero`` ends here."""

_PLACE = re.compile(r" \((?:at )?(?:line (\d+), column (\d+)|(?:at )?end of document)\)$")


def read_bytes(path: Path) -> bytes:
    """Read a file that a user named.

    Raises:
        ConfigError: It cannot be read, or is longer than 1 MiB.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        # A name that was mistyped explains itself.
        remedy = "" if isinstance(error, FileNotFoundError) else what_to_do(error)
        message = f"cannot be read: {reason.lower()}"
        raise ConfigError(message, path=shown(path), remedy=remedy) from error
    if len(data) > LARGEST:
        raise ConfigError("is longer than 1 MiB, which no such file is", path=shown(path))
    return data


def decode(data: bytes, path: Path) -> str:
    """The text of a file; a byte order mark, as some editors write, is dropped.

    Raises:
        ConfigError: It is no UTF-8; the message names line and column.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from after the mark, and what is before the fault is good UTF-8.
        data = data.removeprefix(b"\xef\xbb\xbf")
        before = data[: error.start].decode("utf-8", "replace")
        place = place_of(before, len(before))
        byte = data[error.start]
        raise ConfigError(f"{place}: not UTF-8 text (byte 0x{byte:02x})", path=shown(path)) from (
            error
        )


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: It is no TOML; the message names line and column.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError("is nested too deeply", path=shown(path)) from error
    except ValueError as error:  # TOMLDecodeError, and int() on ten thousand digits
        message = str(error)
        match = _PLACE.search(message)
        place = f"line {match[1]}, column {match[2]}" if match and match[1] else ""
        if match and not match[1]:
            place = place_of(text, len(text))
        said = _PLACE.sub("", message)
        if "digits" in said:
            said = "a number has thousands of digits"
        where = f"{place}: " if place else ""
        raise ConfigError(
            f"{where}not valid TOML: {said[:1].lower()}{said[1:]}", path=shown(path)
        ) from error


def place_of(text: str, offset: int) -> str:
    """``line 3, column 5``, both counted from 1."""
    line = text.count("\n", 0, offset) + 1
    column = offset - (text.rfind("\n", 0, offset) + 1) + 1
    return f"line {line}, column {column}"


def shown(path: Path) -> str:
    """A path that can be printed, whatever bytes it has."""
    return printable(str(path))


def printable(text: str) -> str:
    """The text with whatever a terminal could obey or not show written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")

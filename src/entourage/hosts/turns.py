"""Bytes at the beginning of a file that are others once it is whole: who writes it says which."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

HEAD = 1 << 16
"""Bytes in which that may be."""


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """Some of them.

    Attributes:
        at: Where they are.
        meanwhile: What they are while it is written.
        whole: What they are then, as many; the same, where they only show what file it is.
    """

    at: int
    meanwhile: bytes
    whole: bytes


def turned(head: bytes, turns: Sequence[Turn]) -> bytes | None:
    """How a file that is being written will begin; None where that is not known.

    Args:
        head: How it begins now.
        turns: What turns into what.
    """
    found = bytearray(head)
    for turn in turns:
        place = slice(turn.at, turn.at + len(turn.meanwhile))
        if bytes(found[place]) != turn.meanwhile or len(turn.whole) != len(turn.meanwhile):
            return None
        found[place] = turn.whole
    return bytes(found)

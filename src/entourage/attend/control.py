"""What the hook and commands ask the daemon of their host, and what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec

LIVES_EVERY = 5.0
"""Seconds between two signs of life to who waits for an answer."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the hook or a command asks, as one line of JSON.

    Attributes:
        hook: The hook's words: the domain's name, operation and sub-operation.
        xml: What it was given; by Proxmox's hookscript, what it knows.
        off, on: Stop attending, or attend again, the domain of that name; ``*``: all.
    """

    hook: tuple[str, ...] = ()
    xml: str = ""
    off: str = ""
    on: str = ""


class Answered(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer.

    Attributes:
        xml: What the hook is to print; empty: nothing.
        refuse: Why the migration is refused; empty: it is not.
        done: What a command has done.
    """

    xml: str = ""
    refuse: str = ""
    done: str = ""


async def unless_gone(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    answering: Coroutine[Any, Any, Answered],
) -> Answered:
    """An answer; given up where who has asked goes away, as a hook whose libvirtd was killed.

    Meanwhile who has asked is told again and again, by an empty line, that it is worked on: the
    hook does not wait for a daemon that hangs.

    Raises:
        ConnectionError: It has.
    """
    task, gone = asyncio.create_task(answering), asyncio.create_task(reader.read(1))
    try:
        while not task.done():
            await asyncio.wait(
                {task, gone}, timeout=LIVES_EVERY, return_when=asyncio.FIRST_COMPLETED
            )
            if gone.done() and not task.done():
                raise ConnectionError("nobody waits for the answer")
            if not task.done():
                writer.write(b"\n")
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)

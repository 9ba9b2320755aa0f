"""Is what two hosts have at a path one and the same? The source's side of looking at storage."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import msgspec

from entourage.devices.block import storage
from entourage.devices.block.storage import Seen, Spot

Ask: TypeAlias = Callable[[Sequence[Spot]], Awaitable[Sequence[Seen]]]

# A guest that writes can make the two hosts see different moments of one device.
_LOOKS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """A file or device of the source, and what the target has in its place.

    Attributes:
        path: On the source.
        here: What the source sees there.
        there: What the target sees in its place.
        same: Proven to be one and the same.
        likely: Not to be proven, but everything that can be compared agrees.
        reason: Why it is not the same, or cannot be told.
    """

    path: str
    here: Seen
    there: Seen
    same: bool = False
    likely: bool = False
    reason: str = ""


async def compare(
    pairs: Sequence[tuple[str, str]],
    migration: str,
    ask: Ask,
) -> list[Match]:
    """Look at files and devices from both hosts.

    Args:
        pairs: Each a path on the source and the one in its place on the target.
        migration: The migration's id.
        ask: Has the target look.
    """
    matches: list[Match] = []
    for _ in range(_LOOKS):
        matches = await _compare_once(pairs, migration, ask)
        if not any(_may_be_a_moment(match) for match in matches):
            break
    return matches


def _may_be_a_moment(match: Match) -> bool:
    """Whether it fails to be the same only in what a running guest changes."""
    if match.same or match.here.kind != "device":
        return False
    return match.here.samples != match.there.samples and bool(match.here.ids & match.there.ids)


async def _compare_once(
    pairs: Sequence[tuple[str, str]],
    migration: str,
    ask: Ask,
) -> list[Match]:
    with contextlib.ExitStack() as nonces:
        spots: list[Spot] = []
        unwritable: list[str] = []
        for path, _ in pairs:
            seen = await storage.look(Spot(path=path))
            spot, why = Spot(path=path), ""
            if seen.kind == "file":
                try:
                    spot = nonces.enter_context(storage.nonce_beside(path, migration))
                except OSError as error:
                    why = error.strerror or str(error)
            if not spot.nonce:
                spot = Spot(path=path, samples=storage.sample_offsets(seen.size))
            spots.append(spot)
            unwritable.append(why)
        before = await asyncio.gather(*map(storage.look, spots))
        theirs = [
            msgspec.structs.replace(spot, path=there)
            for spot, (_, there) in zip(spots, pairs, strict=True)
        ]
        there = await ask(theirs)
        after = await asyncio.gather(*(storage.look(Spot(path=path)) for path, _ in pairs))
    return [
        _judge_device(spot.path, one, two)
        if one.kind == "device"
        else _judge_file(spot.path, (one, two, three), why)
        for spot, one, two, three, why in zip(spots, before, there, after, unwritable, strict=True)
    ]


def _judge_device(path: str, here: Seen, there: Seen) -> Match:
    if there.kind == "device" and storage.same_device(here, there):
        return Match(path, here, there, same=True)
    if there.kind != "device":
        return Match(path, here, there, reason=_instead(there, "device"))
    likely = here.size == there.size and storage.same_samples(here, there)
    if likely:
        reason = "neither a WWN nor a serial number says whether the two devices are one"
    elif here.ids & there.ids:
        reason = "the two devices bear one identity, but differ in size or content"
    else:
        reason = "the device of that name there is another one"
    return Match(path, here, there, likely=likely, reason=reason)


def _judge_file(path: str, looks: tuple[Seen, Seen, Seen], unwritable: str) -> Match:
    """Judge a file.

    Args:
        path: The file.
        looks: From the source, from the target, from the source again: the file may grow.
        unwritable: Why no nonce could be written; empty where it could.
    """
    before, there, after = looks
    agrees = there.inode == before.inode and before.size <= there.size <= after.size
    # One kernel says that it is one file: the hosts are namespaces of one machine.
    if there.ids & before.ids or (there.nonce and agrees):
        return Match(path, before, there, same=True)
    if there.kind != "file":
        return Match(path, before, there, reason=_instead(there, "file"))
    if unwritable:
        likely = agrees and storage.same_samples(before, there)
        reason = f"nothing can be written beside {path} to see whether it is shared ({unwritable})"
        return Match(path, before, there, likely=likely, reason=reason)
    if there.nonce:
        return Match(path, before, there, reason="the directory is shared, but the files differ")
    return Match(path, before, there, reason="a file of that name there is on other storage")


def _instead(there: Seen, wanted: str) -> str:
    """What is there where a file or device should be."""
    if there.kind == "none":
        return f"there is no such {wanted}"
    if there.error:
        return f"it cannot be looked at there: {there.error}"
    return f"it is no {wanted} there"


async def same_content(match: Match, ask: Callable[[str], Awaitable[str]]) -> bool:
    """Whether both hosts have the same bytes there; reads all of it.

    Only for what nobody writes to.

    Args:
        match: What was seen.
        ask: Has the target digest its file. It is told the source's digest: who knows what is in a
            file may have it opened.
    """
    if match.same:
        return True
    readable = {"file", "device"}
    if match.there.kind not in readable or match.here.kind not in readable:
        return False
    if storage.whole_sectors(match.here.size) != storage.whole_sectors(match.there.size):
        return False
    ours = await storage.digest(match.path)
    return await ask(ours) == ours

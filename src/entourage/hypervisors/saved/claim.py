"""Who may restore a save: whoever's claim is in it. There is one, or none.

A claim is made whole before it has its name (link(2), which is atomic and fails where there is
one, also on NFS), and is on the disk before the guest may run.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec

from entourage import durable
from entourage.errors import HypervisorError, plain_words, what_to_do

_CLAIM = "claim.json"
_LARGEST = 4096


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A claim.

    Attributes:
        holder: The UUID of the journal in which the host that has it keeps its record of saves.
        host: The host's name, for people.
        restored: Whether the guest was let run there; else it may have been.
    """

    holder: str
    host: str
    restored: bool = False


def read_claim(directory: Path) -> Claim | None:
    """The claim on a save; None where there is none. Blocks.

    Raises:
        HypervisorError: It cannot be read, so it may be anybody's.
    """
    path = directory / _CLAIM
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:  # noqa: PTH123 - no FIFO holds it up
            return msgspec.json.decode(file.read(_LARGEST), type=Claim)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HypervisorError(plain_words(error), remedy=what_to_do(error)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise HypervisorError(
            f"{path} is damaged: who has restored it is not known",
            remedy="if you are sure that nobody has, delete it",
        ) from error


def objection(directory: Path, own: str) -> tuple[str, str] | None:
    """Why a save may not be restored here, and what to do; None where nobody has claimed it."""
    claim = read_claim(directory)
    if claim is None:
        return None
    if claim.restored:
        return (
            f"it was restored on {claim.host}, and goes on there",
            f"see `entourage list` on {claim.host}",
        )
    where = "here" if claim.holder == own else f"on {claim.host}"
    return (
        f"it is being restored on {claim.host}, or was when something failed",
        f"`entourage recover` {where} settles it",
    )


def take(directory: Path, own: str) -> None:
    """Claim a save; on the disk when this returns. Blocks.

    Raises:
        HypervisorError: Somebody else has, or it cannot be written.
    """
    claim = Claim(holder=own, host=socket.gethostname())
    try:
        durable.make(directory / _CLAIM, msgspec.json.encode(claim))
    except FileExistsError:
        pass  # whose it is, is seen next
    except OSError as error:
        raise HypervisorError(
            f"the save cannot be claimed: {plain_words(error)}", remedy=what_to_do(error)
        ) from error
    found = read_claim(directory)
    if found != claim:
        by = found.host if found else "somebody"
        raise HypervisorError(
            f"{by} has claimed the save meanwhile", remedy="`entourage saved` shows who has"
        )


def confirm(directory: Path, own: str) -> None:
    """The guest runs: nobody restores the save any more. Again is no error. Blocks."""
    found = read_claim(directory)
    if found is None or found.holder != own:
        raise HypervisorError(
            f"{directory / _CLAIM} is not this host's any more, and the guest runs here",
            remedy="see who has changed it; nobody may restore this save",
        )
    if not found.restored:
        restored = msgspec.structs.replace(found, restored=True)
        durable.write(directory / _CLAIM, msgspec.json.encode(restored))


def give_up(directory: Path, own: str) -> None:
    """The guest was never let run: take the claim back, if it is this host's. Blocks."""
    found = read_claim(directory)
    if found is not None and found.holder == own and not found.restored:
        durable.remove(directory / _CLAIM)

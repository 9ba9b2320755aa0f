"""Who may restore a save: whoever's claim is in it. There is one, or none.

A claim is made whole before it has its name (link(2), which is atomic and fails where there is
one, also on NFS), and is on the disk before the guest may run.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path

import msgspec

from entourage.errors import HypervisorError, plain_words, what_to_do
from entourage.hypervisors.files import sync_directory

_CLAIM = "claim.json"
_HOLDER = "saves-holder"
_LARGEST = 4096


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A claim.

    Attributes:
        holder: What tells one host's Entourage from all others.
        host: The host's name, for people.
        restored: Whether the guest was let run there; else it may have been.
    """

    holder: str
    host: str
    restored: bool = False


def holder(state: Path) -> str:
    """What this host's claims are known by; made once, and kept with its journal. Blocks."""
    path = state / _HOLDER
    if not path.exists():
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path, secrets.token_hex(16).encode())
    return path.read_text(encoding="ascii")


def read_claim(directory: Path) -> Claim | None:
    """The claim on a save; None where there is none. Blocks.

    Raises:
        HypervisorError: It cannot be read, so it may be anybody's.
    """
    path = directory / _CLAIM
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_LARGEST), type=Claim)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HypervisorError(plain_words(error), remedy=what_to_do(error)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
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
        return f"it was restored on {claim.host}, and goes on there", "a machine runs once"
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
        _make(directory / _CLAIM, msgspec.json.encode(claim))
    except OSError as error:
        raise HypervisorError(
            f"the save cannot be claimed: {plain_words(error)}", remedy=what_to_do(error)
        ) from error
    found = read_claim(directory)
    if found != claim:
        by = found.host if found else "somebody"
        raise HypervisorError(f"{by} has claimed the save meanwhile")


def confirm(directory: Path, own: str) -> None:
    """The guest runs: nobody restores the save any more. Again is no error. Blocks.

    Nor does anybody where its user has removed it meanwhile.
    """
    if directory.parent.is_dir() and not directory.exists():
        return
    found = read_claim(directory)
    if found is None or found.holder != own:
        raise HypervisorError(f"{directory / _CLAIM} is not this host's any more")
    if not found.restored:
        made = msgspec.json.encode(msgspec.structs.replace(found, restored=True))
        scratch = _scratch(directory / _CLAIM, made)
        scratch.rename(directory / _CLAIM)
        sync_directory(directory)


def give_up(directory: Path, own: str) -> None:
    """The guest was never let run: take the claim back, if it is this host's. Blocks."""
    found = read_claim(directory)
    if found is not None and found.holder == own and not found.restored:
        (directory / _CLAIM).unlink(missing_ok=True)
        sync_directory(directory)


def _make(path: Path, content: bytes) -> None:
    """Make a file whole, or not at all; one that is there already stays as it is."""
    scratch = _scratch(path, content)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(scratch, path)
    finally:
        scratch.unlink()
    sync_directory(path.parent)


def _scratch(path: Path, content: bytes) -> Path:
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, content)
        os.fsync(handle)
    except BaseException:
        scratch.unlink()
        raise
    finally:
        os.close(handle)
    return scratch
